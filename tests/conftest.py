"""What every test may use: a server for each test process, a namespace of its own, and two rules of the house."""

from __future__ import annotations

import os
import re
import signal
import uuid
from collections import Counter
from collections.abc import Generator, Iterator

import pytest
import redis

from smqueue.embedded import EmbeddedServer

KEY_KINDS = frozenset(
    {
        "active",
        "inactive",
        "history",
        "machine",
        "schedule",
        "hosted",
        "waiting",
        "inbox",
        "seen",
        "marker",
        "control",
        "operations",
        "requests",
        "data",
        "race",
        "quarantine",
        "watchers",
        "held",
        "updates",
        "moves",
        "tallies",
        "early",
        "controls",
        "workers",
        "meta",
        "hint",
        "roused",
        "watch",
        "watched",
        "reply",
        "children",
        "finished",
        "unsent",
    }
)
"""The second part of every key that smqueue may leave behind. A new kind is added here, and to the table of keys."""


@pytest.fixture(scope="session")
def server(smqueue_server: EmbeddedServer) -> EmbeddedServer:
    """The server of this test process."""
    return smqueue_server


@pytest.fixture(scope="session")
def redis_client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client of the state database; keys and values are bytes."""
    with redis.Redis.from_url(server.url, socket_timeout=10) as client:
        yield client


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    """A namespace that no other test has: nothing needs to be emptied."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60]
    return f"{name}-{uuid.uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def no_unlisted_keys(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a key in its namespace whose kind is not listed above, then remove its keys."""
    if "namespace" not in request.fixturenames:
        yield
        return
    name: str = request.getfixturevalue("namespace")
    client: redis.Redis = request.getfixturevalue("redis_client")
    yield
    keys = list(client.scan_iter(match=f"*{name}*", count=1000))
    unlisted = unlisted_keys(name, keys)
    if keys:
        client.unlink(*keys)
    if unlisted:
        pytest.fail(f"keys were left behind of a kind that is not in KEY_KINDS: {', '.join(unlisted)}", pytrace=False)


@pytest.fixture(autouse=True)
def no_address_is_left() -> Iterator[None]:
    """Forget what a command that ran in this process has told its environment: the next processes inherit that."""
    before = {name: value for name, value in os.environ.items() if name.startswith("SMQUEUE_")}
    yield
    for name in [name for name in os.environ if name.startswith("SMQUEUE_")]:
        del os.environ[name]
    os.environ.update(before)


def unlisted_keys(namespace: str, keys: list[bytes]) -> list[str]:
    """Those keys that are not ``{namespace.shard}:kind`` or ``{namespace.shard}:kind:…`` with a listed kind."""
    shape = re.compile(rf"\{{{re.escape(namespace)}\.[0-9]+\}}:([^:]+)(:|\Z)")
    matches = {key.decode(errors="backslashreplace"): shape.match(key.decode(errors="replace")) for key in keys}
    return sorted(key for key, match in matches.items() if match is None or match[1] not in KEY_KINDS)


def pytest_configure(config: pytest.Config) -> None:
    """Switch on the rule about skips where it applies; and let Ctrl-C end what tests start, whoever has started them.

    Shells start what they put into the background with SIGINT ignored, and that is inherited.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("CI"):
        config.pluginmanager.register(NoSkips(), "no-skips")


class NoSkips:
    """In CI a skip is a failure: everything that a test needs is installed there."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Turn a test's skip, but not an expected failure, into a failure."""
        report = yield
        if report.skipped and not hasattr(report, "wasxfail"):
            report.outcome = "failed"
            report.longrepr = f"skipped, and in CI nothing may be: {report.longreprtext}"
        return report

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Turn the skip of a whole module into a failure."""
        report = yield
        if report.skipped:
            report.outcome = "failed"
            report.longrepr = f"skipped, and in CI nothing may be: {report.longreprtext}"
        return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much the exploration of the protocols has covered: a promise that rests on counts prints them."""
    total: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "explored" and report.when == "call" and isinstance(value, dict):
                total.update(value)
    if total:
        told = ", ".join(f"{total[name]:,} {name}" for name in ("pairs", "triples", "schedules", "states", "steps"))
        terminalreporter.write_sep("=", f"explored: {told}")
