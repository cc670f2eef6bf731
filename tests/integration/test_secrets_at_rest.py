"""Fields marked ``Secret``, with a codec: no plain text leaves the process; keys rotate."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
import redis
from celery import Celery
from cryptography.fernet import Fernet

from smqueue import (
    DefinitionError,
    Delivery,
    Executor,
    ExecutorBuilder,
    FernetCodec,
    InvalidInput,
    Module,
    Secret,
    SecretCodec,
    SecretDamaged,
    SecretKeyMissing,
    State,
    StateAlreadyExists,
    StateMachine,
    Transaction,
    now,
)  # fmt: skip
from smqueue.cli import run
from smqueue.client import Client
from smqueue.embedded import EmbeddedServer
from smqueue.keys import shard_of
from smqueue.protocols import runs
from smqueue.records import Field
from smqueue.secrets import Secrets
from smqueue.worker.code import end_to
from tests.apps import vault
from tests.apps.vault import HUSH, Locked, Open, Pin, Spawning, opening
from tests.apps.wiring import environment
from tests.inprocess import Local, Play, machines
from tests.monitor import monitoring
from tests.waiting import wait_until
from tests.workers import Worker, running

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
LOCKED = Locked("door", f"{HUSH} key")


def with_keys(play: Play, *keys: str, stored_plain: bool = False, **modules: Module[Any]) -> Local:
    """A process of the namespace that has these keys; without any it has no codec."""
    local = play(**(modules or {"vault": vault.vault}))
    local.instances.secrets = Secrets(FernetCodec(keys) if keys else None, stored_plain=stored_plain)
    return local


def everything(client: redis.Redis) -> Iterator[bytes]:
    """Each name and value of a database, as bytes. Not by DUMP, which compresses."""
    ways = {
        b"none": lambda key: [],  # expired meanwhile
        b"string": lambda key: [client.get(key)],
        b"hash": lambda key: [part for pair in client.hgetall(key).items() for part in pair],
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": lambda key: list(client.smembers(key)),
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": lambda key: [repr(client.xrange(key)).encode()],
    }
    for key in cast("list[bytes]", client.keys()):
        yield key
        yield from cast("Any", ways[cast("bytes", client.type(key))](key))


def stored(local: Local) -> list[bytes]:
    """All that the test's namespace has stored."""
    return [one for one in everything(local.redis) if one]


def plain_in(found: Sequence[bytes]) -> list[bytes]:
    """Where the plain text of a secret stands."""
    return [one for one in found if HUSH.encode() in one]


# --- no plain text ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server of this test alone: all of its databases are the test's."""
    with EmbeddedServer() as server:
        yield server


def run_all(executor: Executor, client: redis.Redis) -> None:
    """Bring secrets into every place where one is stored, and back."""
    here, there = (next(f"op{n}" for n in range(99) if shard_of(f"op{n}", 2) == shard) for shard in (0, 1))
    executor.signal("early", opening, Pin(f"{HUSH} early"))
    executor.signal("early", vault.note, f"{HUSH} note")
    starting = {
        "late": Locked("late", f"{HUSH} key"), "early": Locked("early", f"{HUSH} key"),
        "asking": vault.Asking("asking", f"{HUSH} key"), "watching": vault.Watching("asking", f"{HUSH} key"),
        "here": Spawning((here, there), f"{HUSH} key"), "there": Spawning(("child",), f"{HUSH} key"),
        "failing": vault.Failing("failing", f"{HUSH} key"), "cancelled": Locked("cancelled", f"{HUSH} key"),
        "listening": vault.Listening(f"room-{client.client_id()}", f"{HUSH} key"),
    }  # fmt: skip
    for op, state in starting.items():
        executor.add_state_machines([StateMachine(op, state)])
    assert executor.signal("late", opening, Pin(f"{HUSH} ignored", "nobody")) is Delivery.DELIVERED
    executor.signal("late", opening, Pin(f"{HUSH} late"))
    executor.cancel("cancelled", "no more")
    wait_until(lambda: executor.explain("listening").active[0].triggers[0].running, "it listens")
    client.publish(starting["listening"].room, json.dumps({"pin": "heard", "who": "ann"}))  # in plain text: not ours
    for op in set(starting) - {"failing", "early"} | {here, there, "child"}:
        executor.await_operation(op, 60)
    executor.await_operation("early", 60)
    wait_until(lambda: executor.explain("failing").active[0].status == "quarantined", "it is set aside", 60)
    ends = {op: end_of(executor, op) for op in ("late", "early", "asking", "watching", "child", there, "listening")}
    asked = f"{HUSH} hosted {HUSH} asked {HUSH} asked {HUSH} key"
    assert ends == {
        "late": f"{HUSH} key {HUSH} late", "early": f"{HUSH} key {HUSH} early", "asking": asked,
        "watching": f"{HUSH} key {asked}", "child": f"{HUSH} spawned {HUSH} told",
        there: f"{HUSH} spawned {HUSH} told", "listening": "heard",
    }  # fmt: skip


def end_of(executor: Executor, op: str) -> str:
    """The secret of the state in which an operation has ended."""
    return next(m.state.key for m, _ in executor.get_inactive_states(op) if isinstance(m.state, Open))


def test_no_plain_text_reaches_a_server_or_a_log(
    own_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Through adding, signals early and late, a poll, a call, a coroutine, a channel, ``reached``, machines and signals
    of a transition within and across shards, cancelling, a client with the codec and a handler that fails with the
    secret in its error, no command that reaches the server, state or broker, holds a plain secret; nor does any value,
    log, command of ours or explanation. What was stored comes back."""
    env = environment(own_server.url, own_server.broker_url, "secrets", tmp_path)
    env |= {"TEST_SECRET_KEYS": f"{NEW},{OLD}", "TEST_SHARDS": "2"}
    caplog.set_level(logging.DEBUG)
    app = Celery("vaults", broker=own_server.broker_url, set_as_current=False)
    app.conf.update(task_default_queue="secrets", smqueue_shards=2)
    builder = ExecutorBuilder().with_module("vault", vault.vault).with_secrets(FernetCodec([NEW, OLD]))
    executor = builder.build(app, url=own_server.url, namespace="secrets")
    worker = Worker("tests.apps.vault", env, ["-c", "2", "-E"])
    with redis.Redis.from_url(own_server.url) as client, running(worker), monitoring(client) as monitor:
        worker.wait_ready()
        run_all(executor, client)
        machine = {"operation_id": "by-client", "module": "vault", "type": "Locked"}
        through = Client(own_server.url, "secrets", shards=2, secrets=FernetCodec(NEW))
        through.add([{**machine, "state": {"name": "door", "key": f"{HUSH} sent"}}])
        through.signal("by-client", "opening", {"pin": f"{HUSH} sent", "who": "bob"})
        executor.await_operation("by-client", 30)
        assert end_of(executor, "by-client") == f"{HUSH} sent {HUSH} sent"
        shown = [repr(executor.explain(op)) for op in ("late", "failing", "watching")]
        with through.subscribe("late", timeout=0) as updates:
            shown.append(repr(list(updates)))
        with executor.notifier.subscribe("late", timeout=0) as updates:
            typed = [update.state for update in updates]
        assert typed[0] == Locked("late", f"{HUSH} key"), "whoever has the key sees it"
        shown.append(repr(typed))
        told = [b" ".join(asked.args) for asked in monitor.asked]
        for db in (0, 1):
            with redis.Redis.from_url(own_server.url.replace("db=0", f"db={db}")) as each:
                told += [one for one in everything(each) if one]
        assert len(told) > 200
        assert plain_in(told) == []
        monkeypatch.setenv("SMQUEUE_URL", own_server.url)
        monkeypatch.setenv("SMQUEUE_NAMESPACE", "secrets")
        for command in (
            ["list", "--json"],
            ["list"],
            ["show", "failing", "--json"],
            ["show", "late"],
            ["why", "failing"],
        ):
            assert run([*command]) in {0, 1}
        shown += [worker.output, caplog.text, *capfd.readouterr()]
    assert "quarantined: ValueError: no door has the key" in "".join(shown)
    assert HUSH not in "".join(shown)


def test_a_client_without_the_codec_sends_plain_text(play: Play) -> None:
    """What docs/security.md says of clients: theirs is a request in plain text until a worker has done it, for they
    have no schema; what the worker stores is encrypted."""
    local = with_keys(play, NEW)
    client = Client(local.settings.url, local.namespace)
    with pytest.raises(Exception, match="Waited"):
        client.signal("op", "opening", {"pin": f"{HUSH} sent"}, timeout=0.01)
    assert plain_in(stored(local)) != []
    local.requests_due()
    local.run()
    assert plain_in(stored(local)) == []
    local.add("op", LOCKED)
    local.settle("op")
    assert Open("door", f"{HUSH} key {HUSH} sent") in local.inactive("op")


def test_the_end_of_a_task_is_kept_encrypted(play: Play) -> None:
    """What a task of the user's has brought, kept for a worker that can read it, is one ciphertext till then."""
    local = with_keys(play, NEW)
    local.add("op", vault.Tasking("t", f"{HUSH} key"))
    machine = local.stored("op", vault.Tasking("t", f"{HUSH} key"))
    entry = f"{machine.entry}:reversed_"
    local.make_due(entry)
    local.drain()
    assert local.driver.run(runs.keep_end(local.keys(), entry, end_to(local.engine, entry, {"value": f"{HUSH} back"})))
    assert plain_in(stored(local)) == []
    local.redis.zadd(local.keys().schedule, {entry: 1})
    local.settle("op")
    assert Open("t", f"{HUSH} back") in local.inactive("op")


def test_errors_of_handlers_show_no_secret(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """A user's error with a secret in its text is logged, stored and explained with ``***`` in its place."""
    local = with_keys(play, NEW)
    local.add("op", vault.Failing("f", f"{HUSH} 'quoted'\n"))
    local.until(lambda: local.explained("op").status == "quarantined")
    assert "ValueError: no door has the key" in local.explained("op").last_error
    assert "***" in local.explained("op").last_error
    assert HUSH not in caplog.text + repr(local.executor.explain("op"))
    assert plain_in(stored(local)) == []


# --- off by default --------------------------------------------------------------------------------------------------


def test_without_a_codec_nothing_changes(play: Play) -> None:
    """Without a codec a state and a payload are stored byte for byte as their JSON."""
    local = with_keys(play)
    local.executor.signal("op", opening, Pin(f"{HUSH} pin"))
    (item,) = local.redis.lrange(local.keys().inbox("op", "vault", "opening"), 0, -1)
    assert f',"payload":{{"pin":"{HUSH} pin","who":"ann"}},'.encode() in item
    local.add("op2", LOCKED)
    (field,) = local.redis.hkeys(local.keys().active("op2"))
    assert field.decode() == f'vault Locked {{"key":"{HUSH} key","name":"door"}}'


lookalikes = Module("lookalikes")
anything = lookalikes.signal("anything", Any)  # type: ignore[arg-type]


@lookalikes.state
class Taking(State):
    n: int
    labels: dict[str, str]


@lookalikes.state(terminal=True)
class Took(State):
    what: str


@lookalikes.on(Taking, anything)
def took(tx: Transaction, state: Taking, got: Any) -> Took:
    return Took(json.dumps(got))


@pytest.mark.parametrize("keys", [(), (NEW,)])
@pytest.mark.parametrize(
    "given", [{"$sealed": 5}, {"$sealed": {"$": "x"}}, {"$": "x"}, {"$$": [{"$": "x"}]}, "$sealed"]
)
def test_nothing_of_a_users_is_taken_for_ciphertext(play: Play, keys: tuple[str, ...], given: Any) -> None:
    """Data that look like sealed ones come back as they were, with a codec and without: nobody can have a ciphertext
    that he has seen decrypted by sending it as a payload."""
    local = with_keys(play, *keys, lookalikes=lookalikes)
    labels = given if isinstance(given, dict) and all(isinstance(one, str) for one in given.values()) else {}
    local.add("op", Taking(1, labels))
    assert local.active("op") == [Taking(1, labels)]
    local.executor.signal("op", "anything", given)
    local.settle("op")
    assert Took(json.dumps(given)) in local.inactive("op")


# --- identity --------------------------------------------------------------------------------------------------------


def test_identity_is_that_of_the_plain_text(play: Play) -> None:
    """The same secret is the same state, another one another; the ciphertext of one secret differs from operation to
    operation, so that nobody sees who shares one."""
    local = with_keys(play, NEW)
    local.add("a", LOCKED)
    with pytest.raises(StateAlreadyExists):
        local.add("a", LOCKED)
    local.add("a", Locked("door", f"{HUSH} other"))
    local.add("b", LOCKED)
    assert local.executor.contains_active_state(StateMachine("a", LOCKED))
    fields = [local.placed(op, LOCKED).field for op in ("a", "b", "a")]
    assert fields[0] == fields[2] != fields[1]


EARLIER = (OLD,)
ROTATED = (NEW, OLD)


def test_after_a_rotation_a_record_is_the_same(play: Play) -> None:
    """A record that was stored under an earlier key is found, refused a second time, moves on, and re-entered it stays
    one record with its visits counted; what is written is written under the newest key."""
    before, after = with_keys(play, *EARLIER), with_keys(play, *ROTATED)
    before.executor.signal("op", opening, Pin(f"{HUSH} early", "nobody"))
    before.add("op", LOCKED)
    assert after.executor.contains_active_state(StateMachine("op", LOCKED))
    with pytest.raises(StateAlreadyExists):
        after.add("op", LOCKED)
    after.run()  # the early signal was encrypted under the old key, too
    after.executor.signal("op", vault.note, f"{HUSH} key")  # A → A
    after.until(lambda: after.executor.contains_inactive_state(StateMachine("op", LOCKED)))
    assert len(after.redis.hkeys(after.keys().active("op"))) == 1, "left under one key and entered under the other"
    after.executor.signal("op", vault.note, f"{HUSH} second")
    after.until(lambda: after.active("op") == [Locked("door", f"{HUSH} second")])
    after.executor.signal("op", vault.note, f"{HUSH} key")  # A → B → A
    after.until(lambda: after.active("op") == [LOCKED])
    after.executor.signal("op", opening, Pin(f"{HUSH} pin"))
    after.settle("op")
    past = {m.state: state for m, state in after.executor.get_inactive_states("op")}
    assert past[LOCKED].visits == 3
    assert len(past) == len(after.redis.hkeys(after.keys().inactive("op"))) == 3
    newest = repr(FernetCodec(NEW))[len("<FernetCodec ") : -1]
    assert newest in after.placed("op", LOCKED).field
    assert plain_in(stored(after)) == []


def test_machines_under_two_keys_merge(play: Play) -> None:
    """A machine that reaches a state in which another is, stored under an earlier key, ends there. (semantics 27)"""
    before, after = with_keys(play, *EARLIER), with_keys(play, *ROTATED)
    before.add("op", LOCKED)
    (machine,) = after.add("op", Locked("door", f"{HUSH} second"))
    after.executor.signal("op", vault.note, f"{HUSH} key", machine=machine)
    after.until(lambda: after.active("op") == [LOCKED])
    assert len(after.redis.hkeys(after.keys().active("op"))) == 1


def test_records_from_before_the_codec_are_known(play: Play) -> None:
    """``stored_plain`` finds records that were stored in plain text; they move on, encrypted. Without it they move on,
    too, but adding one again is not refused."""
    plain, sealed = with_keys(play), with_keys(play, NEW, stored_plain=True)
    plain.add("op", LOCKED)
    assert sealed.executor.contains_active_state(StateMachine("op", LOCKED))
    with pytest.raises(StateAlreadyExists):
        sealed.add("op", LOCKED)
    strict = with_keys(play, NEW)
    assert strict.active("op") == [LOCKED]
    assert not strict.executor.contains_active_state(StateMachine("op", LOCKED))
    strict.executor.signal("op", opening, Pin(f"{HUSH} pin"))
    strict.settle("op")
    assert Open("door", f"{HUSH} key {HUSH} pin") in strict.inactive("op")


def test_migrations_see_plain_text(play: Play) -> None:
    """A record of an earlier version is decrypted before its migrations map it, also when they rename the secret."""

    def version(number: int) -> tuple[Module[Any], type[Any]]:
        module = Module("m", version=number)

        class Card(State):
            pass

        name = "number" if number == 1 else "digits"
        card = module.state(name="Card")(type("Card", (State,), {"__annotations__": {name: Annotated[str, Secret]}}))
        go = module.signal("go")

        @module.on(card, go)
        def gone(tx: Transaction, state: Any, _: None) -> None:
            return None

        if number == 2:
            module.migrate(card, since=2)(lambda old: {"digits": old["number"].replace("-", "")})
        return module, card

    (first, old_card), (second, new_card) = version(1), version(2)
    with_keys(play, OLD, m=first).add("op", old_card(f"{HUSH}-1-2"))
    local = with_keys(play, NEW, OLD, m=second)
    assert local.active("op") == [new_card(f"{HUSH}12")]
    assert local.executor.contains_active_state(StateMachine("op", new_card(f"{HUSH}12")))


# --- keys that are not there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [(), (NEW,)], ids=["no codec", "another key"])
def test_a_worker_without_the_key_leaves_the_record(
    play: Play, keys: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """A record under a key that a worker lacks is neither garbled nor quarantined: it waits, explained by an error that
    names the key, and goes on in a worker that has it. So does one whose outcome alone is under that key."""
    has, lacks = with_keys(play, OLD), with_keys(play, *keys)
    key = repr(FernetCodec(OLD))[len("<FernetCodec ") : -1]
    has.add("op", LOCKED)
    has.executor.signal("op", opening, Pin(f"{HUSH} pin"))
    assert lacks.drain() == 0
    assert lacks.active("op") == []
    (machine,) = lacks.executor.explain("op").active
    assert machine.machine is None
    assert machine.status == "decided"
    assert machine.last_error is not None
    assert machine.last_error.startswith(f"SecretKeyMissing: A secret is encrypted under key {key}")
    assert f"left for another worker: A secret is encrypted under key {key}" in caplog.text
    assert lacks.redis.hlen(lacks.keys().quarantine) == 0
    has.expire_leases()
    has.settle("op")
    assert Open("door", f"{HUSH} key {HUSH} pin") in has.inactive("op")


def test_a_worker_without_the_key_of_an_outcome_leaves_it(play: Play) -> None:
    """Of a state without secrets whose payload has one the same holds: no failure is counted, nothing set aside."""
    module = Module("m")
    go = module.signal("go", Pin)

    @module.state
    class Plain(State):
        n: int

    @module.state(terminal=True)
    class End(State):
        pin: str

    @module.on(Plain, go)
    def gone(tx: Transaction, state: Plain, got: Pin) -> End:
        return End(got.pin)

    has, lacks = with_keys(play, OLD, m=module), with_keys(play, NEW, m=module)
    has.add("op", Plain(1))
    has.executor.signal("op", go, Pin("x" * 9))
    for _ in range(8):  # more often than a handler that fails is retried
        lacks.expire_leases()
        lacks.drain()
    assert lacks.active("op") == [Plain(1)]
    assert lacks.explained("op").attempts == 0
    assert "SecretKeyMissing" in str(lacks.explained("op").last_error)
    has.expire_leases()
    has.settle("op")
    assert End("x" * 9) in has.inactive("op")


def test_a_ciphertext_is_good_in_its_place_alone(play: Play) -> None:
    """A ciphertext that is moved to another operation, or altered, is refused, and the record set aside: who can write
    to Redis can have no secret shown where it does not belong."""
    local = with_keys(play, NEW)
    local.add("a", LOCKED)
    keys = local.keys()
    (field,), (value,) = local.redis.hkeys(keys.active("a")), local.redis.hvals(keys.active("a"))
    local.redis.hset(keys.active("b"), field, value)
    assert local.active("b") == []
    about = b"about"
    codec = FernetCodec(NEW)
    for text in (codec.encrypt(b"plain", about), codec.spellings(b"plain", about)[0]):
        assert codec.decrypt(text, about) == b"plain"
        for wrong, where in ((text, b"elsewhere"), (text[:-6] + "AAAAA=", about), (text[:20], about), (HUSH, about)):
            with pytest.raises(SecretDamaged):
                codec.decrypt(wrong, where)
    with pytest.raises(SecretKeyMissing) as caught:
        FernetCodec(OLD).decrypt(codec.encrypt(b"plain", about), about)
    assert caught.value.key in repr(codec)
    local.executor.signal("a", opening, Pin(f"{HUSH} pin"))
    race = keys.race(local.placed("a", LOCKED).record)
    (raw,) = local.redis.hmget(race, "value")
    local.redis.hset(race, "value", raw.replace(b"gAAAA", b"gAAAB"))
    local.until(lambda: local.explained("a").status == "quarantined", timeout_s=60)
    assert "SecretDamaged" in str(local.explained("a").last_error)


# --- the codec -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [[], ["short"], [NEW, "not base64 !" + HUSH], [None]])
def test_a_wrong_key_is_refused_without_being_shown(keys: Any) -> None:
    """What is no key is refused when the codec is made, by its number; neither error nor repr shows a key."""
    with pytest.raises(DefinitionError, match=r"Fernet.generate_key") as caught:
        FernetCodec(keys)
    assert HUSH not in repr(caught.value) + str(caught.value)
    assert NEW not in repr(FernetCodec(NEW)) + str(vars(FernetCodec(NEW)))


class Backwards(SecretCodec):
    """A codec of a user's own."""

    def encrypt(self, plain: bytes, about: bytes) -> str:
        return plain.decode()[::-1]

    def spellings(self, plain: bytes, about: bytes) -> Sequence[str]:
        return [plain.decode()[::-1]]

    def decrypt(self, text: str, about: bytes) -> bytes:
        return text[::-1].encode()


@dataclass(frozen=True)
class Keyring:
    keys: tuple[Annotated[str, Secret], ...]
    by_name: dict[str, Annotated[int, Secret]]
    more: Annotated[dict[str, list[str]], Secret]
    none: Annotated[str, Secret] | None = None


def test_a_codec_may_be_a_users_own(play: Play) -> None:
    """Any ``SecretCodec`` will do, and secrets are found in every container: lists, dictionaries, dataclasses."""
    module = Module("rings")

    @module.state
    class Holding(State):
        n: int
        ring: Keyring
        all: tuple[Keyring, ...]

    @module.state(terminal=True)
    class End(State):
        ring: Keyring

    @module.on(Holding, now())
    def ended(tx: Transaction, state: Holding, _: None) -> End:
        return End(state.all[0])

    ring = Keyring((f"{HUSH}1", f"{HUSH}2"), {"a": 77_777}, {"k": [HUSH]})
    local = play(rings=module)
    local.instances.secrets = Secrets(Backwards())
    local.add("op", Holding(1, ring, (ring, ring)))
    (field,) = local.redis.hkeys(local.keys().active("op"))
    assert b"1hsuh" in field
    assert b"77777" in field, "backwards it is the same"
    assert json.loads(Field.parse(field.decode()).state)["$sealed"]["ring"]["by_name"] == {"a": {"$": "77777"}}
    assert plain_in(stored(local)) == []
    local.settle("op")
    assert End(ring) in local.inactive("op")


def test_a_codec_is_given_once() -> None:
    """``with_secrets`` refuses what is no codec, and a second one."""
    builder = ExecutorBuilder().with_secrets(Backwards())
    with pytest.raises(DefinitionError, match="twice"):
        builder.with_secrets(Backwards())
    with pytest.raises(InvalidInput, match="SecretCodec"):
        builder.with_secrets(cast("Any", NEW))


def test_batches_of_both(play: Play) -> None:
    """A batch of machines with secrets is added at once, and each is found again."""
    local = with_keys(play, NEW, OLD)
    batch = machines("op", *[Locked(str(n), f"{HUSH} {n}") for n in range(50)])
    local.executor.add_state_machines(batch)
    assert all(local.executor.contains_active_state(one) for one in batch)
    assert plain_in(stored(local)) == []
