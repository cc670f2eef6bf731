"""The picture of a module's graph: everything is in it, in words too, and it is well-formed whatever the names are."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from smqueue.drawing import svg
from smqueue.errors import MissingExtra
from smqueue.graph import Edge, Graph

SVG = "{http://www.w3.org/2000/svg}"
ORDERS = Graph(
    ("Awaiting", "Packing", "Shipped", "Odd"),
    (
        Edge("Awaiting", "Packing", "paid", "signal payment"),
        Edge("Awaiting", "Packing", "settled", "poll bank"),
        Edge("Awaiting", "Awaiting", "reminded", "after 1 h"),
        Edge("Packing", "Shipped", "handed_over", "call carrier"),
    ),
    terminal=frozenset({"Shipped"}),
    dynamic=frozenset({"Odd"}),
)


def drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def groups(picture: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [group for group in picture.iter(f"{SVG}g") if kind in group.get("class", "").split()]


def title(group: ElementTree.Element) -> str:
    return group.findtext(f"{SVG}title") or ""


def state(picture: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = (group for group in groups(picture, "state") if group.get("data-state") == name)
    return found


def box(group: ElementTree.Element) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a state."""
    found = next(one for one in group.iter(f"{SVG}rect") if one.get("class") == "box")
    x, y, width, height = (float(found.get(name, "")) for name in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def test_everything_is_drawn_and_told() -> None:
    """Each state and each transition once, parallel ones and loops too, with a title in words."""
    picture = drawn(svg(ORDERS))
    assert [group.get("data-state") for group in groups(picture, "state")] == list(ORDERS.nodes)
    assert [title(group) for group in groups(picture, "state")] == [
        "state Awaiting", "state Packing", "state Shipped, terminal", "state Odd, decides by itself",
    ]  # fmt: skip
    edges = groups(picture, "transition")
    assert [(e.get("data-from"), e.get("data-to"), e.get("data-handler")) for e in edges] == [
        (edge.source, edge.target, edge.handler) for edge in ORDERS.edges
    ]
    assert title(edges[0]) == "Awaiting to Packing: paid, signal payment"
    assert "State graph: 4 states, 4 transitions" in (picture.findtext(f"{SVG}title") or "")
    paths = [path.get("d") for path in picture.iter(f"{SVG}path") if path.get("class") == "line"]
    assert len(paths) == len(set(paths)) == 4 + 2, "parallel ones are apart; two beginnings have arrows"


def test_no_two_things_cover_each_other() -> None:
    """States do not overlap, and all of them lie inside of the picture."""
    picture = drawn(svg(ORDERS))
    x, y, width, height = map(float, picture.get("viewBox", "").split())
    boxes = [box(group) for group in groups(picture, "state")]
    for at, (left, top, right, bottom) in enumerate(boxes):
        assert x <= left < right <= x + width
        assert y <= top < bottom <= y + height
        for other in boxes[at + 1 :]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_current_states_and_counts_are_shown() -> None:
    """What is current is lit, has a number and says so; what was counted too. A zero is neither."""
    counts = {("Awaiting", "Packing", "paid"): 12_345, ("Packing", "Shipped", "handed_over"): 1}
    picture = drawn(svg(ORDERS, current={"Awaiting": 2, "Packing": 0}, counts=counts))
    assert [group.get("data-state") for group in groups(picture, "current")] == ["Awaiting"]
    assert [text.text for badge in groups(picture, "badge") for text in badge.iter(f"{SVG}text")] == ["2"]
    assert title(state(picture, "Awaiting")) == "state Awaiting, 2 machines now"
    assert state(picture, "Awaiting").get("aria-current") == "true"
    assert [title(group) for group in groups(picture, "transition")] == [
        "Awaiting to Packing: paid, signal payment, 12,345 times",
        "Awaiting to Packing: settled, poll bank, 0 times",
        "Awaiting to Awaiting: reminded, after 1 h, 0 times",
        "Packing to Shipped: handed_over, call carrier, 1 time",
    ]
    assert [group.get("data-handler") for group in groups(picture, "taken")] == ["paid", "handed_over"]
    shown = [text.text for text in picture.iter(f"{SVG}text") if text.get("class") == "count"]
    assert shown == ["\N{MULTIPLICATION SIGN} 12.3k", "\N{MULTIPLICATION SIGN} 1"]


def test_numbers_do_not_move_anything() -> None:
    """Two pictures of one graph differ in numbers alone: one that is updated does not jump."""

    def places(text: str) -> list[str]:
        picture = drawn(text)
        lines = [path.get("d", "") for path in picture.iter(f"{SVG}path") if path.get("class") == "line"]
        return [str(box(group)) for group in groups(picture, "state")] + lines

    few = svg(ORDERS, current={"Awaiting": 1}, counts={("Awaiting", "Packing", "paid"): 1})
    many = svg(ORDERS, current={"Shipped": 10**9}, counts={("Packing", "Shipped", "handed_over"): 10**9})
    assert places(few) == places(many)


def test_what_only_records_know_is_drawn() -> None:
    """States and transitions that no handler declares, of dynamic states or older code, are there, and marked."""
    picture = drawn(svg(ORDERS, current={"Gone": 3}, counts={("Odd", "Gone", "decided"): 5, ("A", "B", "never"): 0}))
    assert "dynamic" in state(picture, "Gone").get("class", "").split()
    (seen,) = groups(picture, "seen")
    assert title(seen) == "Odd to Gone: decided, 5 times"
    assert len(groups(picture, "state")) == 5


@pytest.mark.parametrize(
    "name",
    [
        '<b>&amp;"quoted"</b>',
        "\\N\\L {a|b}",
        "状態" * 30,
        "AVeryLongCamelCaseNameThatGoesOnAndOn" * 5,
        "a\x00\x1b]b",
        " ",
    ],
)
def test_any_name_can_be_drawn(name: str) -> None:
    """Names that look like XML or Graphviz's language, very long ones, other scripts, control characters."""
    graph = Graph((name, "End"), (Edge(name, "End", name, name), Edge(name, name, name, name)), frozenset({"End"}))
    picture = drawn(svg(graph, current={name: 1}, counts={(name, "End", name): 1}))
    clean = re.sub(r"[\x00\x1b]", " ", name)
    assert clean in title(state(picture, clean))
    left, _, right, _ = box(state(picture, clean))
    assert right - left < 400, "it is broken into lines"


def test_text_has_counts_too() -> None:
    """Mermaid and dot tell what is current and what was counted, also of what no handler declares."""
    current, counts = {"Awaiting": 2}, {("Awaiting", "Packing", "paid"): 7, ("Odd", "Gone", "decided"): 5}
    seen = ORDERS.with_seen(current, counts)
    mermaid, dot = seen.mermaid(current, counts), seen.dot(current, counts)
    assert "    Awaiting --> Packing : paid (signal payment), 7 times\n" in mermaid
    assert "    Odd --> Gone : decided, 5 times\n" in mermaid
    assert "    Awaiting : 2 now\n" in mermaid
    assert '"Awaiting" -> "Packing" [label="paid (signal payment), 7 times"];' in dot
    assert '"Odd" -> "Gone" [label="decided, 5 times"];' in dot
    assert '"Awaiting" [label="Awaiting (2 now)"];' in dot
    assert ORDERS.with_seen({}, {}) == ORDERS


@pytest.mark.parametrize("count", [0, 1, 60])
def test_graphs_of_any_size(count: int) -> None:
    """None, one, and sixty states."""
    nodes = tuple(f"State{n}" for n in range(count))
    edges = tuple(Edge(one, other, "goes_on", "now") for one, other in pairwise(nodes))
    picture = drawn(svg(Graph(nodes, edges)))
    assert len(groups(picture, "state")) == count
    assert len(groups(picture, "transition")) == max(0, count - 1)


def test_several_fit_into_one_page() -> None:
    """There is no id that could be there twice, and nothing is loaded from anywhere."""
    text = svg(ORDERS, current={"Awaiting": 1}, counts={})
    assert " id=" not in text
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|href|@import|<script", text)


def test_without_its_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture is refused with the command that mends it."""
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(MissingExtra, match=r"pip install 'smqueue\[drawing\]'"):
        svg(Graph(("Alone",), ()))


def test_nothing_but_a_picture_imports_graphviz() -> None:
    """It is an extra: the module that draws can be imported without it."""
    code = "import sys, smqueue.drawing; sys.exit('pygraphviz' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
