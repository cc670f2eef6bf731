"""The pytest plugin of smqueue, found by its entry point: one real server for each test process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from smqueue.embedded import EmbeddedServer


@pytest.fixture(scope="session")
def smqueue_server() -> Iterator[EmbeddedServer]:
    """A real server in a temporary directory, one for each test process (each worker of pytest-xdist).

    Tests share it: give each a namespace of its own. It ends with the session, also when that is killed.

    Raises:
        NoServerBinary: There is no server to run; the text names the ways out.
        ServerFailed: It did not start; the end of its log is in the text.
    """
    with EmbeddedServer() as server:
        yield server
