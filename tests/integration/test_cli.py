"""Every command of ``smqueue``: against a real server, and a real worker where one is needed."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import click
import pytest
import redis
from rich.text import Text

from smqueue.cli import Exit, run
from smqueue.cli.arguments import SPAN
from smqueue.cli.commands import COMMANDS
from smqueue.cli.output import Screen, colored, table
from smqueue.embedded import EmbeddedServer
from smqueue.keys import Keys, digest
from smqueue.processes import Child
from tests.brokers import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
MODULES = "tests.apps.shop:orders,tests.apps.shop:kinds"
FORMATS = ("mermaid", "dot", "svg")
VARIABLES = ("SMQUEUE_URL", "SMQUEUE_NAMESPACE", "SMQUEUE_MODULES", "SMQUEUE_APP", "CELERY_BROKER_URL")


class Done(NamedTuple):
    """How a command has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output, which is one JSON array."""
        assert (self.code, self.err) == (0, "")
        found = json.loads(self.out)
        assert isinstance(found, list)
        return found


Command = Callable[..., Done]


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: EmbeddedServer, namespace: str
) -> Command:
    """Runs a command in this process, on a namespace of its own and, unless some are given, without modules."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")

    def call(*args: str, modules: str = "") -> Done:
        for name in VARIABLES:
            os.environ[name] = ""
        os.environ.update(SMQUEUE_URL=server.url, SMQUEUE_NAMESPACE=namespace, SMQUEUE_MODULES=modules)
        capsys.readouterr()
        code = run(list(args))
        return Done(code, *capsys.readouterr())

    return call


@pytest.fixture
def waiting(command: Command) -> str:
    """An order that waits, in an operation whose id needs encoding."""
    op = "order:1 {ü}"
    done = command("add", op, "orders", "Awaiting", order("1"), modules=MODULES)
    assert (done.code, done.err) == (0, "")
    assert len(done.out.split()) == 1
    return op


def order(order_id: str, total: int = 3) -> str:
    return json.dumps({"order_id": order_id, "total": total, "patience": 1_790_000_000})


def refused(done: Done, *parts: str, code: int = 1) -> None:
    """It has failed with one line that holds all the parts, and has printed nothing."""
    assert done.code == code, done
    assert done.out == ""
    assert done.err.startswith("smqueue: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err


# --- looking ----------------------------------------------------------------------------------------------------------


def test_list_needs_no_modules(command: Command, waiting: str) -> None:
    """A machine is listed as it is stored: one JSON array, or a table."""
    (found,) = command("list", "--json").json
    assert (found["operation_id"], found["module"], found["type"]) == (waiting, "orders", "Awaiting")
    assert found["state"]["order_id"] == "1"
    assert (found["step"], found["status"], found["last_error"]) == (1, "waiting", None)
    table = command("list")
    assert table.code == 0
    assert waiting in table.out
    assert "\x1b" not in table.out


def test_list_narrows(command: Command, redis_client: redis.Redis, namespace: str, tmp_path: Path) -> None:
    """By module, operation, state, number, and to what is quarantined; nothing found is an empty array."""
    machines = [
        {"operation_id": f"o{n}", "module": "orders", "type": "Packing", "state": {"order_id": str(n)}}
        for n in range(150)
    ] + [{"operation_id": "o0", "module": "kinds", "type": "Listening", "state": {"room": "r"}}]
    file = tmp_path / "machines.json"
    file.write_text(json.dumps(machines))
    assert len(command("add", "--file", str(file), "--json", modules=MODULES).json) == 151
    assert len(command("list", "--json").json) == 151
    assert len(command("list", "--json", "--limit", "7").json) == 7
    assert [one["type"] for one in command("list", "--json", "--module", "kinds").json] == ["Listening"]
    assert [one["type"] for one in command("list", "--json", "--state", "Listening").json] == ["Listening"]
    assert {one["module"] for one in command("list", "--json", "--operation", "o0").json} == {"orders", "kinds"}
    assert command("list", "--json", "--operation", "none").json == []
    assert command("list", "--json", "--quarantined").json == []
    table = command("list")
    assert len(table.out.splitlines()) == 101
    assert "--limit 0" in table.err

    set_aside(redis_client, namespace, "o7", "ValueError: broken")
    (found,) = command("list", "--json", "--quarantined").json
    assert (found["operation_id"], found["status"], found["last_error"]) == ("o7", "quarantined", "ValueError: broken")
    assert "is quarantined: ValueError: broken" in command("why", "o7").out
    refused(command("retry", "o7"), "--modules", code=2)
    assert command("retry", "o7", modules=MODULES).out == "1 taken out of quarantine\n"
    assert command("list", "--json", "--quarantined").json == []


def set_aside(client: redis.Redis, namespace: str, op: str, error: str) -> None:
    """Quarantine the only machine of an operation, as a worker would."""
    keys = Keys(namespace)
    (field,) = client.hkeys(keys.active(op))
    record = digest(op, field.decode())
    why = {"error": error, "op": op, "entry": record, "at": 0}
    client.hset(keys.quarantine, record, json.dumps(why))


def test_an_unreadable_record_is_listed(
    command: Command, waiting: str, redis_client: redis.Redis, namespace: str
) -> None:
    """Garbage under a record's field is shown as unreadable, and hides nothing else."""
    redis_client.hset(Keys(namespace).active(waiting), "rubbish", "rubbish")
    assert sorted(one["status"] for one in command("list", "--json").json) == ["unreadable", "waiting"]
    assert command("show", waiting).code == 0
    assert "cannot be read" in command("why", waiting).out


@pytest.mark.parametrize("modules", ["", MODULES])
def test_show_and_why(command: Command, waiting: str, modules: str) -> None:
    """Armed triggers by their handlers, the deadline, a pause, early signals; with and without modules alike."""
    (active,) = command("show", waiting, "--json", modules=modules).json
    assert (active["kind"], active["state"]["total"], active["status"]) == ("active", 3, "waiting")
    assert [one["name"] for one in active["triggers"]] == ["orders.Awaiting/paid", "orders.Awaiting/expired"]
    command("signal", waiting, "packed", modules=MODULES)
    command("pause", waiting)
    text = command("why", waiting, modules=modules).out
    assert "orders.Awaiting/paid waits for signal payment" in text
    assert "orders.Awaiting/expired waits for" in text
    assert "due in 29 min" in text
    assert "paused" in text
    assert "1 signal is kept for which nobody waits: orders.packed" in text
    rows = command("show", waiting, "--json", modules=modules).json
    assert rows[-1] | {"oldest": ""} == {
        "kind": "buffered", "operation_id": waiting, "module": "orders", "signal": "packed", "count": 1, "oldest": "",
    }  # fmt: skip
    assert "1 of orders.packed" in command("show", waiting, modules=modules).out
    assert len(command("why", waiting, "--json", modules=modules).json) == len(text.splitlines())


def test_what_is_not_there(command: Command) -> None:
    """An unknown operation is an error that says where to look, for every command that names one."""
    for name in ("show", "why", "cancel"):
        refused(command(name, "nobody"), "nobody", "smqueue list", code=Exit.NO_SUCH_OPERATION)


def test_a_large_operation_is_shown_in_part(command: Command, tmp_path: Path) -> None:
    """``show`` and ``why`` tell of a hundred machines, and how many more there are; --limit is another number, or all.
    Like ``list``, ``show --json`` has all of them unless it is limited."""
    state = {"operation_id": "o", "module": "orders", "type": "Packing"}
    file = tmp_path / "machines.json"
    file.write_text(json.dumps([{**state, "state": {"order_id": f"{n}"}} for n in range(230)]))
    assert command("add", "--file", str(file), modules=MODULES).code == 0
    shown = command("show", "o").out
    assert (shown.count("active "), shown.splitlines()[-1]) == (100, "there are 130 more active: --limit 0 shows all")
    why = command("why", "o", modules=MODULES).out
    assert (why.count("has been waiting"), "130 more machines are active" in why) == (100, True)
    assert len(command("show", "o", "--json").json) == 230
    some = command("show", "o", "--json", "--limit", "7")
    assert (len(json.loads(some.out)), some.err) == (7, "there are 223 more active: --limit 0 shows all\n")
    assert command("why", "o", "--limit", "0").out.count("has been waiting") == 230


EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\x7fred\rover"


def test_no_text_of_others_reaches_the_terminal_as_a_command(
    command: Command, redis_client: redis.Redis, namespace: str
) -> None:
    """Ids and errors may hold what a terminal obeys: it is replaced, and in JSON written as such."""
    op = f"o{EVIL}"
    assert command("add", op, "orders", "Awaiting", order(EVIL), modules=MODULES).code == 0
    set_aside(redis_client, namespace, op, f"ValueError: {EVIL}")
    calls = [
        ("list",),
        ("show", op),
        ("why", op),
        ("stats",),
        ("verify", op),
        ("verify", f"x{EVIL}"),
        ("why", f"x{EVIL}"),
    ]
    for call in calls:
        said = command(*call)
        for text in (said.out, said.err):
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text), call
    (listed,) = command("list", "--json").json
    assert (listed["operation_id"], listed["state"]["order_id"]) == (op, EVIL)
    assert "\x9b" not in command("list", "--json").out


def test_a_terminal_gets_our_colors_alone() -> None:
    """On a terminal what is colored stays so; what others have written is replaced, in the cells of tables too."""
    written = io.StringIO()
    rows = table("status")
    rows.add_row(colored("paused", f"paused {EVIL}"))
    Screen(file=written, force_terminal=True, color_system="standard", highlight=False).print(rows, Text(EVIL))
    assert "\x1b[33m" in written.getvalue()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", re.sub(r"\x1b\[[0-9;]*m", "", written.getvalue()))
    assert "\x1b[31m" not in written.getvalue()


def test_existence_is_looked_for_in_no_machine(command: Command, waiting: str, redis_client: redis.Redis) -> None:
    """``cancel`` and ``retry`` ask whether there is an operation, and read nothing of it for that."""
    redis_client.config_resetstat()
    assert command("cancel", "nobody").code == Exit.NO_SUCH_OPERATION
    used = {name for name in redis_client.info("commandstats") if name.startswith("cmdstat_")}
    assert not used & {"cmdstat_scan", "cmdstat_hscan", "cmdstat_hgetall"}, used


# --- steering ---------------------------------------------------------------------------------------------------------


def test_cancel_without_modules(command: Command, waiting: str) -> None:
    """All machines of an operation end, with the reason kept; a second time there is nothing to end."""
    assert command("cancel", waiting, "--reason", "asked to").out == "1 ended\n"
    (past,) = command("show", waiting, "--json").json
    assert (past["kind"], past["cancelled"]) == ("inactive", "asked to")
    assert "has finished" in command("why", waiting).out
    assert command("list", "--json").json == []
    assert command("cancel", waiting).out == "0 ended\n"
    refused(command("signal", waiting, "packed", modules=MODULES), "OperationFinished")


def test_pause_and_resume(command: Command, waiting: str) -> None:
    """By operation, module or state, with modules or without; a typing error is not taken for a name."""

    def status() -> str:
        return command("list", "--json").json[0]["status"]

    assert command("pause", waiting).code == 0
    assert status() == "paused"
    assert command("resume", waiting).code == 0
    assert status() == "waiting"
    assert command("pause", "--module", "orders", "--state", "Awaiting", modules=MODULES).code == 0
    assert status() == "paused"
    assert command("resume", "--module", "orders", "--state", "Awaiting", modules=MODULES).code == 0
    assert status() == "waiting"
    refused(command("pause", "--module", "order", modules=MODULES), "UnknownModule", "orders, kinds")
    refused(command("pause", "--module", "orders", "--state", "Awaitin", modules=MODULES), "no such state")
    for scope in (("--module", "orders"), ("--module", "orders", "--state", "Awaiting")):
        assert command("pause", *scope, "--reason", "bank is down").code == 0
        assert (status(), command("pause", *scope).code) == ("paused", 0)
        assert re.search(rf"paused: .*bank is down. smqueue resume {' '.join(scope)} ends it", command("stats").out)
        (one,) = json.loads(command("stats", "--json").out)["paused"]
        assert (one["module"], one["reason"]) == ("orders", "bank is down")
        assert command("resume", *scope).code == 0
        assert (status(), "paused" in command("stats").out) == ("waiting", False)
    refused(command("pause", "--module", "order"), "module", "only in orders", "--modules")
    refused(command("resume", "--module", "orders", "--state", "Awaitin"), "state", "only in Awaiting")
    refused(command("pause", "--state", "Awaiting"), "--module", code=2)
    refused(command("pause"), "--module", code=2)
    refused(command("pause", waiting, "--module", "orders"), "not both", code=2)
    refused(command("retry", "--module", "orders"), "retry needs the modules", "SMQUEUE_MODULES", code=2)


def test_what_is_paused_before_it_starts(command: Command) -> None:
    """It is known, and said to be paused, with what ends that."""
    assert command("pause", "later", "--reason", "not yet").code == 0
    for name in ("why", "show"):
        said = command(name, "later")
        assert (said.code, said.err) == (0, "")
        assert re.search(r"not (yet )?started.*paused.*: not yet", said.out), said.out
    assert "smqueue resume later" in command("why", "later").out
    assert command("resume", "later").code == 0
    refused(command("why", "later"), code=Exit.NO_SUCH_OPERATION)


# --- producing --------------------------------------------------------------------------------------------------------


def test_bad_machines_are_refused(command: Command, waiting: str, tmp_path: Path) -> None:
    """Each with one line that names what is wrong; nothing of the batch is written."""
    add = ("add", "o", "orders")
    refused(command("add", waiting, "orders", "Awaiting", order("1"), modules=MODULES), "StateAlreadyExists")
    refused(command(*add, "Shipped", '{"order_id": "1"}', modules=MODULES), "StateAlreadyTerminal")
    refused(command(*add, "Awaiting", '{"order_id": 1}', modules=MODULES), "InvalidState", "order_id")
    refused(command(*add, "Waiting", "{}", modules=MODULES), "orders.Waiting")
    refused(command("add", "o", "shop", "Awaiting", "{}", modules=MODULES), "UnknownModule", "orders, kinds")
    refused(command("add", "", "orders", "Awaiting", order("1"), modules=MODULES), "operation_id")
    refused(command(*add, "Awaiting", "{order", modules=MODULES), "not JSON", code=2)
    refused(command(*add, modules=MODULES), "OP MODULE TYPE JSON", code=2)
    file = tmp_path / "machines.json"
    file.write_text('{"operation_id": "o"}')
    refused(command("add", "--file", str(file), modules=MODULES), "no JSON array", code=2)
    file.write_text("[1]")
    refused(command("add", "--file", str(file), modules=MODULES), "JSON object", code=2)
    good = {"operation_id": "o", "module": "orders", "type": "Packing", "state": {"order_id": "1"}}
    file.write_text(json.dumps([good, {**good, "extra": 1}]))
    refused(command("add", "--file", str(file), modules=MODULES), "extra")
    refused(command("add", "--file", str(tmp_path / "none"), modules=MODULES), "none", code=2)
    assert len(command("list", "--json").json) == 1
    file.write_text(json.dumps([good, {**good, "operation_id": "p"}]))
    assert len(command("add", "--file", str(file), modules=MODULES).out.split()) == 2
    assert len(command("add", "--file", str(file), "--exist-ok", modules=MODULES).out.split()) == 2


def test_bad_signals_are_refused(command: Command, waiting: str) -> None:
    """An unknown name, a payload that does not fit or is no JSON."""
    assert command("signal", "early", "packed", modules=MODULES).out == "BUFFERED\n"
    refused(command("signal", waiting, "pay", modules=MODULES), "UnknownSignal", "payment")
    refused(command("signal", waiting, "payment", '{"amount": "3"}', modules=MODULES), "InvalidPayload", "amount")
    refused(command("signal", waiting, "payment", "{amount", modules=MODULES), "not JSON", code=2)
    paid = ("signal", waiting, "payment", '{"amount": 3}', "--id", "p1")
    assert command(*paid, modules=MODULES).out == "DELIVERED\n"
    assert command(*paid, modules=MODULES).out == "DUPLICATE\n"
    refused(
        command("signal", waiting, "packed", "--timeout", "0.2"), "AwaitTimeout", "smqueue worker", code=Exit.TIMEOUT
    )


@pytest.fixture
def worker(server: EmbeddedServer, namespace: str, tmp_path: Path) -> Iterator[Child]:
    """``smqueue worker`` over modules named on its command line."""
    arguments = ["worker", "--url", server.url, "--namespace", namespace, "--modules", MODULES]
    arguments += ["--broker", server.broker_url, "-c", "1", "-l", "INFO", "-n", f"cli-{namespace}@test"]
    command = [sys.executable, "-m", "smqueue", *arguments, "--without-gossip", "--without-mingle", "-Q", namespace]
    log = tmp_path / "worker.log"
    environment = dict.fromkeys(VARIABLES, "") | {
        "PYTHONPATH": str(ROOT), "TEST_DIR": str(tmp_path),
        "SMQUEUE_TRIGGER_QUEUE": namespace, "SMQUEUE_TRANSITION_QUEUE": namespace,
    }  # fmt: skip
    with Child("worker", command, environment, log, ROOT) as child:
        wait_until(lambda: " ready." in log.read_text() or not child.alive, "the worker is ready", 60)
        assert child.alive, log.read_text()
        yield child
    log.unlink()


def test_workers_do_what_is_asked_without_modules(command: Command, worker: Child) -> None:
    """``smqueue worker`` runs modules by name; add and signal without modules reach it, with its typed errors."""
    add = ("add", "o", "orders", "Awaiting")
    assert len(command(*add, order("1")).out.split()) == 1
    refused(command(*add, order("1")), "StateAlreadyExists")
    refused(command(*add, '{"order_id": 5}'), "InvalidState", "order_id")
    refused(command("add", "o", "no", "Awaiting", order("1")), "UnknownModule", "orders, kinds")
    refused(command("signal", "o", "payment", '{"amount": "3"}'), "InvalidPayload", "amount")
    assert command("signal", "o", "packed").out == "BUFFERED\n"
    assert command("signal", "o", "payment", '{"amount": 3}').out == "DELIVERED\n"
    wait_until(lambda: command("list", "--json").json == [], "the order has shipped")
    ends = {one["type"]: one for one in command("show", "o", "--json").json}
    assert ends["Awaiting"]["won"] == "paid"
    assert ends["Packing"]["won"] == "handed_over"
    assert ends["Shipped"]["terminal"]
    assert worker.stop() == 0


def test_flower_needs_no_modules(server: EmbeddedServer, namespace: str, tmp_path: Path) -> None:
    """``smqueue flower`` runs Celery's Flower on a deployment of which no code is known, with Flower's own options."""
    log, port = tmp_path / "flower.log", free_port()
    options = ["--url", server.url, "--namespace", namespace, "--broker", server.broker_url]
    command = [sys.executable, "-m", "smqueue", "flower", *options, "--address=127.0.0.1", f"--port={port}"]
    environment = dict.fromkeys(VARIABLES, "") | {"PYTHONPATH": str(ROOT)}
    with Child("flower", command, environment, log, ROOT) as child:

        def healthy() -> bool:
            assert child.alive, log.read_text()
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck", timeout=10) as found:
                return found.read() == b"OK"
            return False

        wait_until(healthy, "Flower answers", 90)


# --- finding the deployment -------------------------------------------------------------------------------------------


def test_no_or_no_usable_deployment(command: Command) -> None:
    """One line each: nothing given, nobody there, a senseless URL, another kind of object, no such module."""
    away = command("list", "--url", "redis://127.0.0.1:1/0")
    refused(away, "StoreUnavailable", "SMQUEUE_URL", code=Exit.UNAVAILABLE)
    refused(command("list", "--url", "http://x"), "StoreRefused", code=Exit.UNAVAILABLE)
    refused(command("list", "-A", "tests.apps.shop:orders"), "not a Executor")
    refused(command("list", "-A", "tests.apps.nowhere:executor"), "nowhere")
    refused(command("list", "-A", "tests.apps.shop:executor", "--modules", MODULES), "not both", code=2)
    refused(command("why", "o", modules="tests.apps.shop"), "package.module:object")
    refused(command("worker"), "--modules", code=2)
    refused(command("worker", modules="tests.apps.nowhere:orders"), "nowhere")
    refused(command("dev"), "--modules", code=2)
    refused(command("nonsense"), "nonsense", code=2)
    refused(command("list", "--limit", "x"), "--limit", code=2)
    done = subprocess.run(
        [sys.executable, "-m", "smqueue", "list"], capture_output=True, text=True,
        env={**os.environ, **dict.fromkeys(VARIABLES, ""), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    refused(Done(done.returncode, done.stdout, done.stderr), "-A", "--url", "SMQUEUE_URL", code=2)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def broken(:\n", "broken_module.py, line 1"),
        ("import missing_thing\n", "missing_thing"),
        ("x = 1\n1 / 0\n", "ZeroDivisionError: division by zero (at"),
        ("import sys; sys.exit('no')\n", "exits (no)"),
    ],
)
def test_a_module_that_cannot_be_imported(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    """Whatever its code does at import is one line that says where."""
    (tmp_path / "broken_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    refused(command("graph", "broken_module:orders"), says)


def test_graph_and_version(command: Command) -> None:
    """A module is drawn from its name alone, or by its id; in all formats."""
    assert "Awaiting --> Packing : paid (signal payment)" in command("graph", "tests.apps.shop:orders").out
    dot = command("graph", "orders", "--format", "dot", modules=MODULES).out
    assert '"Awaiting" -> "Packing" [label="paid (signal payment)"];' in dot
    picture = ElementTree.fromstring(command("graph", "orders", "--format", "svg", modules=MODULES).out)
    assert any(one.get("data-state") == "Awaiting" for one in picture.iter())
    refused(command("graph", "shop", modules=MODULES), "UnknownModule")
    assert command("version").out.startswith("smqueue ")


def test_graph_with_counts(command: Command, waiting: str) -> None:
    """With --counts each format tells how many machines are in a state."""
    shown = {form: command("graph", "orders", "--counts", "--format", form, modules=MODULES) for form in FORMATS}
    assert all((one.code, one.err) == (0, "") for one in shown.values())
    assert "Awaiting : 1 now" in shown["mermaid"].out
    assert '"Awaiting" [label="Awaiting (1 now)"];' in shown["dot"].out
    assert "<title>state Awaiting, 1 machine now</title>" in shown["svg"].out


def test_stats(command: Command, waiting: str) -> None:
    """Machines by state, and that no worker runs; as a table, and as one JSON object."""
    shown = command("stats")
    assert (shown.code, shown.err) == (0, "")
    assert "1 active machine in 1 active operation" in shown.out
    assert re.search(r"^orders +Awaiting +1 ", shown.out, re.MULTILINE)
    assert "no worker runs" in shown.out
    told = json.loads(command("stats", "--json").out)
    (state,) = told["states"]
    assert (state["module"], state["state"], state["active"]) == ("orders", "Awaiting", 1)
    assert [cause["kind"] for cause in told["causes"]] == ["no_worker"]
    assert command("stats", "--module", "kinds", "--json").out.find("Awaiting") == -1


# --- exit statuses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("list",), Exit.OK),
        (("why", "OP"), Exit.OK),
        (("list", "--help"), Exit.OK),
        (("retry", "OP", "-A", "tests.apps.nowhere:executor"), Exit.FAILED),
        (("add", "OP", "orders", "Awaiting", "{}", "--modules", MODULES), Exit.FAILED),
        (("list", "--colour"), Exit.USAGE),
        (("list", "--older", "soon"), Exit.USAGE),
        (("signal", "OP", "payment", "{"), Exit.USAGE),
        (("show", "nobody"), Exit.NO_SUCH_OPERATION),
        (("verify", "nobody"), Exit.NO_SUCH_OPERATION),
        (("stats", "--url", "redis://127.0.0.1:1/0"), Exit.UNAVAILABLE),
        (("signal", "OP", "payment", "--timeout", "0.1"), Exit.TIMEOUT),
        (("add", "OP", "orders", "Packing", "{}", "--timeout", "0.1"), Exit.TIMEOUT),
    ],
)
def test_exit_statuses(command: Command, waiting: str, arguments: tuple[str, ...], status: Exit) -> None:
    """A script can tell what has happened by the status alone; unless it is 0 there is one line, and no output."""
    done = command(*[waiting if one == "OP" else one for one in arguments])
    if status == Exit.OK:
        assert (done.code, done.err) == (0, "")
    else:
        refused(done, code=status)


def test_every_exit_status_is_documented() -> None:
    """The page has the statuses that there are, and no others."""
    table = (ROOT / "docs/cli.md").read_text().partition("## Exit statuses")[2].partition("\n## ")[0]
    assert [int(found) for found in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(Exit)


def test_every_command_is_documented() -> None:
    """The page's table has all of them."""
    table = (ROOT / "docs/cli.md").read_text().partition("\n## ")[0]
    assert {found for row in table.splitlines() for found in re.findall(r"`smqueue ([a-z]+)", row)} == set(COMMANDS)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("2d4h", 187_200), ("30 min", 1800), ("7", 7), ("0s", 0)]
)
def test_spans(text: str, seconds: float) -> None:
    """Spans of time are read as people write them."""
    assert SPAN.convert(text, None, None).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "h", "1x", "-1s", "1h1", "s1", "1.h", "9" * 30 + "d"])
def test_bad_spans(text: str) -> None:
    """What is none is refused, with an example of what is one."""
    with pytest.raises(click.BadParameter, match=r"is no span of time: write 90s|is too long"):
        SPAN.convert(text, None, None)


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_has_examples(command: Command, name: str) -> None:
    """Every command says what it does, with an example of its use."""
    done = command(name, "--help")
    assert done.code == 0
    assert f"  smqueue {name}" in done.out
    assert "Example" in done.out


def test_help_lists_all_commands(command: Command) -> None:
    """Called with nothing, or --help, it lists them and exits 0."""
    assert command().out == command("--help").out
    for name in COMMANDS:
        assert f"  {name} " in command().out
