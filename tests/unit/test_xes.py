"""The reader of event logs."""

from __future__ import annotations

import gzip
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import pytest

from smqueue.demo.xes import UNNAMED, Case, Event, read_log
from smqueue.errors import InvalidInput

HELPDESK = Path(__file__).parents[3] / "shared" / "data" / "helpdesk.xes.gz"

LOG = """<?xml version="1.0" encoding="utf-8" ?>
<log xes.version="1849-2016" xmlns="http://www.xes-standard.org/">
  <extension name="Concept" prefix="concept" uri="http://www.xes-standard.org/concept.xesext" />
  <global scope="event"><string key="concept:name" value="not an event" /></global>
  <string key="concept:name" value="not a case" />
  <trace>
    <string key="concept:name" value="A"><string key="concept:name" value="nested" /></string>
    <event>
      <string key="concept:name" value="open"><int key="cost" value="3" /></string>
      <date key="time:timestamp" value="2012-10-09T14:50:17+00:00" />
      <list key="parts"><values><string key="part" value="x" /></values></list>
    </event>
    <event><date key="time:timestamp" value="yesterday" /></event>
  </trace>
  <trace><string key="concept:name" value="A" /></trace>
  <trace>
    <string key="concept:name" value="A#2" />
    <event><string key="concept:name" value="&lt;é&#10;" /></event>
  </trace>
  <trace><string key="concept:name" value="A" /></trace>
  <trace />
  <event><string key="concept:name" value="of no case" /></event>
</log>
"""


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "log.xes"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_log_is_read(tmp_path: Path) -> None:
    """Attributes, nested ones too, go to their own case or event; names become unique; what is missing gets a name."""
    first, *others = read_log(written(tmp_path, LOG))
    assert first.events == [
        Event(
            "open",
            datetime(2012, 10, 9, 14, 50, 17, tzinfo=UTC),
            {
                "concept:name": "open",
                "concept:name/cost": "3",
                "time:timestamp": "2012-10-09T14:50:17+00:00",
                "parts": "",
                "parts/part": "x",
            },
        ),
        Event(UNNAMED, None, {"time:timestamp": "yesterday"}),
    ]
    assert [first.name, *(case.name for case in others)] == ["A", "A#2", "A#2#2", "A#3", "case-5"]
    assert [[event.activity for event in case.events] for case in others] == [[], ["<é\n"], [], []]


def test_a_gzipped_log_is_read(tmp_path: Path) -> None:
    """Whether a file is gzipped is seen from its first bytes, not from its name."""
    assert list(read_log(written(tmp_path, gzip.compress(LOG.encode())))) == list(read_log(written(tmp_path, LOG)))


def test_other_encodings_are_read(tmp_path: Path) -> None:
    """The declaration of the document counts."""
    log = '<?xml version="1.0" encoding="iso-8859-1"?><log><trace><string key="concept:name" value="é"/></trace></log>'
    assert list(read_log(written(tmp_path, log.encode("iso-8859-1")))) == [Case("é", [])]


BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no element found"),
        (b"case,activity\n1,open\n", "syntax error"),
        (bytes(range(256)), "not well-formed"),
        (b"<html><body/></html>", "its root element is <html>"),
        (b"<log><trace>", "no element found"),
        (b"<log><trace></log>", "mismatched tag"),
        (b"<log>&nothing;</log>", "undefined entity"),
        (b'<?xml version="1.0" encoding="klingon"?><log/>', "klingon"),
        (b'<?xml version="1.0" encoding="shift_jis"?><log/>', "multi-byte"),
        (b'<!DOCTYPE log SYSTEM "file:///etc/hostname"><log/>', "document type declaration"),
        (f'<!DOCTYPE log [<!ENTITY a0 "aaaaaaaaaa">{BOMB}]><log>&a11;</log>'.encode(), "document type declaration"),
        (b"\x1f\x8b and then something else", "broken gzip"),
        (gzip.compress(LOG.encode(), mtime=0)[:-20], "broken gzip"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_what_is_no_log_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    """Whatever else a file holds, the error is one, names the file and says what is wrong; no entity is expanded."""
    path = written(tmp_path, content)
    with pytest.raises(InvalidInput, match=says) as raised:
        list(read_log(path))
    assert raised.value.field == str(path)


@pytest.mark.parametrize("name", ["", "absent.xes"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    """A folder and an absent file give the same error."""
    with pytest.raises(InvalidInput, match="cannot be read"):
        next(read_log(tmp_path / name))


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A log of 20 MB is read within 2 MB."""
    event = '<event><string key="concept:name" value="open"/><string key="note" value="' + "x" * 900 + '"/></event>'
    trace = f"<trace>{event * 10}</trace>"
    path = written(tmp_path, f"<log>{trace * 2000}</log>")
    tracemalloc.start()
    try:
        assert sum(len(case.events) for case in read_log(path)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not HELPDESK.exists(), reason="the help desk's log is not in ../shared/data")
def test_a_real_log_is_read() -> None:
    """The log of a real help desk: 4,580 cases of different names, 21,348 events, each with a time."""
    cases = list(read_log(HELPDESK))
    assert len({case.name for case in cases}) == len(cases) == 4580
    assert sum(len(case.events) for case in cases) == 21_348
    assert all(event.at and event.activity != UNNAMED for case in cases for event in case.events)
