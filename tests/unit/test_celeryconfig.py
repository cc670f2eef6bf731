"""``celeryconfig.py``: every setting exists, says why it is there, and follows the environment."""

from __future__ import annotations

import ast
import re
import runpy
import types
from pathlib import Path
from typing import Any

import pytest
from amqp import Connection as AmqpConnection
from celery import Celery
from celery.app.defaults import SETTING_KEYS
from kombu.transport.redis import Channel

from smqueue.worker.application import settings as default_settings
from smqueue.worker.tasks import HARD_LIMIT_S

PATH = Path(__file__).parents[2] / "celeryconfig.py"
VARIABLES = (
    "SMQUEUE_URL",
    "SMQUEUE_NAMESPACE",
    "SMQUEUE_TRIGGER_QUEUE",
    "SMQUEUE_TRANSITION_QUEUE",
    "CELERY_BROKER_URL",
)
OURS = {f"smqueue_{name}" for name in ("url", "namespace", "shards", "trigger_queue", "transition_queue")}
UNITS = re.compile(r"\b(seconds|count|attempts|messages)\b", re.IGNORECASE)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def settings() -> dict[str, Any]:
    """The settings as Celery finds them: public names that are no imports."""
    names = runpy.run_path(str(PATH))
    return {
        name: value
        for name, value in names.items()
        if name.islower() and not name.startswith("_") and name != "annotations"
        if not isinstance(value, types.ModuleType) and not callable(value)
    }


def test_every_setting_exists() -> None:
    """Each name is a setting of this Celery or one of ours: a misspelt one would be passed over in silence."""
    unknown = set(settings()) - SETTING_KEYS - OURS
    assert unknown == set()
    assert set(settings()) >= OURS


def test_every_transport_option_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option is one that its transport takes: Redis's would break RabbitMQ's, which takes any and drops them."""
    assert set(settings()["broker_transport_options"]) <= set(Channel.from_transport_options)
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://guest:guest@localhost//")
    options = settings()["broker_transport_options"]
    assert options == {"confirm_publish": True}
    assert AmqpConnection(**options).confirm_publish
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    assert settings()["broker_transport_options"] == {}


def test_every_setting_has_a_reason_and_numbers_have_a_unit() -> None:
    """A comment stands above each setting or its group, and says what a number counts."""
    text = PATH.read_text()
    lines = text.splitlines()

    def reason(number: int) -> str:
        """The comment above the line with that number, past the lines of its group."""
        above = number - 1
        while above and re.match(r"\s*[\w\"]+( = |: )", lines[above - 1]):
            above -= 1
        end = above
        while above and lines[above - 1].lstrip().startswith("#"):
            above -= 1
        return " ".join(lines[above:end])

    given: list[tuple[str, int, ast.expr | None]] = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            given.append((node.targets[0].id, node.lineno, node.value))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if isinstance(node.value, ast.Dict):
                for key, value in zip(node.value.keys, node.value.values, strict=True):
                    assert isinstance(key, ast.Constant)
                    given.append((str(key.value), key.lineno, value))
            else:
                given.append((node.target.id, node.lineno, node.value))
    assert len(given) > len(OURS)
    for name, number, value in given:
        assert len(reason(number)) > 20, f"{name} (line {number}) has no reason above it"
        if (
            isinstance(value, ast.Constant)
            and isinstance(value.value, int | float)
            and not isinstance(value.value, bool)
        ):
            assert UNITS.search(reason(number)), f"{name} (line {number}) has no unit"


@pytest.mark.parametrize(
    ("state", "broker"),
    [
        ("", "redis://localhost:6379/0"),
        ("redis://:secret@host:7000/3", "redis://:secret@host:7000/3"),
        ("rediss://host/1", "rediss://host/1?ssl_cert_reqs=required"),
        ("rediss://host/1?ssl_ca_certs=/ca", "rediss://host/1?ssl_ca_certs=/ca&ssl_cert_reqs=required"),
        ("rediss://host/1?ssl_cert_reqs=none", "rediss://host/1?ssl_cert_reqs=none"),
        ("unix:///run/s.sock?db=2&socket_timeout=3", "redis+socket:///run/s.sock?virtual_host=2"),
        ("unix://:p%40ss@/run/a%20b/s.sock", "redis+socket://:p%40ss@/run/a%20b/s.sock?virtual_host=0"),
        ("redis+socket:///run/s.sock?virtual_host=1", "redis+socket:///run/s.sock?virtual_host=1"),
    ],
)
def test_the_broker_is_the_database_of_the_state(monkeypatch: pytest.MonkeyPatch, state: str, broker: str) -> None:
    """Without a broker of its own, messages go where the state is, in Celery's spelling; an empty variable is none."""
    monkeypatch.setenv("SMQUEUE_URL", state)
    found = settings()
    assert found["broker_url"] == broker
    assert found["smqueue_url"] == (state or "redis://localhost:6379/0")


def test_a_broker_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker and state are independent."""
    monkeypatch.setenv("SMQUEUE_URL", "redis://state/0")
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://broker//")
    found = settings()
    assert (found["broker_url"], found["smqueue_url"]) == ("amqp://broker//", "redis://state/0")


def test_a_plain_worker_consumes_both_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triggers and transitions go to the default queue, until each is given one of its own."""
    found = settings()
    assert found["smqueue_trigger_queue"] == found["smqueue_transition_queue"] == found["task_default_queue"]
    monkeypatch.setenv("SMQUEUE_TRIGGER_QUEUE", "io")
    monkeypatch.setenv("SMQUEUE_TRANSITION_QUEUE", "cpu")
    found = settings()
    assert (found["smqueue_trigger_queue"], found["smqueue_transition_queue"]) == ("io", "cpu")


def test_celery_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery reads the file as a configuration: JSON only, nothing run twice by the broker, ours beside its own."""
    monkeypatch.syspath_prepend(str(PATH.parent))
    app = Celery("test", set_as_current=False)
    app.config_from_object("celeryconfig", force=True)
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_acks_late
    assert not app.conf.task_reject_on_worker_lost
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf["smqueue_shards"] == 1


def test_unacknowledged_messages_are_kept_apart() -> None:
    """Celery keeps them by database, not by queue: under names of our own no other application there delivers ours
    again, nor do we deliver its; and the time until that happens is longer than any task of ours."""
    options = settings()["broker_transport_options"]
    for name in ("unacked_key", "unacked_index_key", "unacked_mutex_key"):
        assert options[name] not in {getattr(Channel, name), ""}
    assert options["visibility_timeout"] >= 2 * HARD_LIMIT_S
    assert default_settings("redis://h/0", "n", "redis://h/0")["broker_transport_options"] == options
