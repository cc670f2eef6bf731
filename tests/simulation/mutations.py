"""Known ways to get these protocols wrong, planted one at a time: the exploration must find each."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from smqueue.drivers.scripts import Script, script
from smqueue.protocols import cancel, others
from smqueue.protocols.decide import Look
from smqueue.relay import Relay
from smqueue.roundtrip import Command, Commit, Read, RoundTrip, read
from smqueue.testing.memory import Connection


class Mutation(NamedTuple):
    """One planted bug, and where it must show: a stage, actors, how many faults."""

    bug: str
    plant: Callable[[], AbstractContextManager[object]]
    stage: str
    actors: tuple[str, ...]
    faults: int = 0

    def __str__(self) -> str:
        return self.bug.replace(" ", "-")


# --- ways of planting ----------------------------------------------------------------------------------------------


def requests_as(change: Callable[[RoundTrip], RoundTrip]) -> Callable[[], AbstractContextManager[object]]:
    """Every request is changed before it is applied."""

    @contextmanager
    def plant() -> Generator[None]:
        trip = Connection.trip
        with patch.object(Connection, "trip", lambda self, request: trip(self, change(request))):
            yield

    return plant


def unwatched(*kinds: str) -> Callable[[], AbstractContextManager[object]]:
    """Keys of these kinds are looked at without a WATCH."""

    def change(request: RoundTrip) -> RoundTrip:
        if not isinstance(request, Read):
            return request
        return request._replace(
            watch=tuple(k for k in request.watch if k.partition("}:")[2].split(":")[0] not in kinds)
        )

    return requests_as(change)


def without(drop: Callable[[Command], bool]) -> Callable[[], AbstractContextManager[object]]:
    """Commits lack some commands; their places in the reply are kept."""

    def change(request: RoundTrip) -> RoundTrip:
        if not isinstance(request, Commit):
            return request
        return Commit(tuple(("EXISTS", "nothing") if drop(command) else command for command in request.commands))

    return requests_as(change)


def scripted(name: str, *changes: tuple[str, str]) -> Callable[[], AbstractContextManager[object]]:
    """A script reads otherwise; ``*`` stands for every script."""

    def changed(asked: str) -> Script:
        known = script(asked)
        if name not in {"*", asked}:
            return known
        body = known.text
        for old, new in changes:
            assert old in body or name == "*", f"{name}.lua has no {old}"
            body = body.replace(old, new)
        return Script(body, known.sha)

    return lambda: patch("smqueue.testing.lua.script", changed)


def replaced(place: str, by: Any) -> Callable[[], AbstractContextManager[object]]:
    """A function is another."""
    return lambda: patch(place, by)


def all_of(*plants: Callable[[], AbstractContextManager[object]]) -> Callable[[], AbstractContextManager[object]]:
    """Several at once."""

    @contextmanager
    def plant() -> Generator[None]:
        with ExitStack() as stack:
            for one in plants:
                stack.enter_context(one())
            yield

    return plant


def _refuse(*_: object) -> Any:
    """The script that moves machines takes none."""
    yield from ()


by_look = replaced("smqueue.protocols.transition.move", _refuse)
"""Every machine moves by a look and an EXEC."""


def _never(*_: object) -> Any:
    """Whether a lost commit was applied: not asked."""
    yield from read([], ("EXISTS", "nothing"))
    return False


def _look_then_register(self: Relay, armed: Any) -> None:
    register = others.watch
    looked: list[Any] = []

    def first_look(*given: Any) -> Any:
        looked.append(given)
        yield from read([], ("EXISTS", "nothing"))

    with patch("smqueue.relay.others.watch", first_look):
        _LOOK(self, armed)
    for given in looked:
        self.driver.run(register(*given))


_LOOK = Relay.look
_SIGNAL = Relay._signal


def _apply_then_remove(self: Relay, request: Any, told: Any) -> None:
    from smqueue.protocols import requests

    _SIGNAL(self, request, told)
    self.driver.run(requests.remove(self.keys, request.raw))


def _look_once(self: Any) -> Any:
    if not hasattr(self, "looked"):
        self.looked = self.run.driver.run(cancel.noted(self.keys, self.op))
    return self.looked


def _terminal(command: Command) -> bool:
    """The touching of a guard by who enters a terminal state: a commit id without what a machine is made of."""
    return command[0] == "SET" and ":machine:" in str(command[1]) and not str(command[2]).startswith("[")


def _none_taken() -> AbstractContextManager[object]:
    """Which buffered signals an attempt has given away already is forgotten."""
    return patch.object(Look, "taken", property(lambda _: set(), lambda *_: None), create=True)


FIRST_STANDS = "if not none and redis.call('HEXISTS', race, 'won') == 1 then return 'LOST' end"
SAME_ARMING = "if not m or m.arming ~= arming or not m.armed[trigger] then return 'STALE' end"
ANY_ARMING = "if not m or not m.armed[trigger] then return 'STALE' end"
SAME_STARTED = SAME_ARMING.replace("'STALE'", "{'STALE'}")
ANY_STARTED = ANY_ARMING.replace("'STALE'", "{'STALE'}")
OWN_TOKEN = "if ARGV[6] ~= '' and redis.call('HGET', race, 'task:' .. trigger) ~= ARGV[6] then return {'STALE', 0} end"
IN_TIME = "if deadline and deadline <= now then return 'LATE' end"
SAME_GUARD = "not raw or raw:sub(1, #expected) ~= expected"
REMOVED_WITH_IT = "redis.call('LREM', requests, 1, request) == 0"

MUTATIONS = [
    Mutation("no guard is watched", all_of(by_look, unwatched("machine")), "claimed",
             ("stopped_first", "drain", "lease_passes")),
    Mutation("the guard of a state that is entered is not watched", all_of(by_look, unwatched("machine")), "claimed",
             ("stopped_first", "stopped_second")),
    Mutation("an inbox is not watched", unwatched("inbox"), "empty", ("add", "signal_end")),
    Mutation("controls are not watched", all_of(by_look, unwatched("control")), "claimed", ("stopped_first", "pause")),
    Mutation("what a handler has read is not watched", unwatched("data"), "again", ("stopped_first", "count")),
    Mutation("a history that is not begun is not watched", unwatched("history", "active"), "waiting",
             ("add_batch", "cancel")),
    Mutation("a race that is armed anew is not watched", unwatched("race"), "quarantined", ("retry", "signal_stay")),
    Mutation("requests are not watched", unwatched("requests"), "unsendable", ("relay_unsendable", "relay_unsendable")),
    Mutation("watchers are not watched", all_of(by_look, unwatched("watchers")), "followed",
             ("stopped_first", "drain")),
    Mutation("a claim removes its entry", scripted("claim", ("many('ZADD', KEYS[1], leased)",
             "many('ZREM', KEYS[1], leased)")), "claimed", ("lease_passes", "drain")),
    Mutation("armings and attempts have no id", scripted("*", (SAME_ARMING, ANY_ARMING), (SAME_STARTED, ANY_STARTED),
             (OWN_TOKEN, "if false then return {'STALE', 0} end")), "again", ("stopped_first", "attempt_under_way")),
    Mutation("the last recorded outcome stands", scripted("*", (FIRST_STANDS, "")), "waiting",
             ("signal_end", "attempt")),
    Mutation("an outcome is recorded after the deadline", scripted("*", (IN_TIME, "")), "waiting",
             ("signal_end", "deadline_passes")),
    Mutation("an add does not recognise its own commit", all_of(
             replaced("smqueue.protocols.autocommit._applied", _never),
             replaced("smqueue.standing.Standing.made", None)), "empty", ("add", "pump"), 1),
    Mutation("a commit without a record leaves no marker",
             without(lambda command: command[0] == "SET" and ":marker:" in str(command[1])),
             "empty", ("count", "pump"), 1),
    Mutation("a buffered signal is given away twice", _none_taken,
             "early", ("add_batch", "pump")),
    Mutation("members of a group rest on what others write", all_of(by_look, replaced("smqueue.drivers.group._disjoint",
             lambda ready: (ready, []))), "decided", ("drain", "pump")),
    Mutation("entering a terminal state does not touch its guard", all_of(by_look, without(_terminal)), "ending",
             ("stopped_first", "stopped_second")),
    Mutation("an operation ends with any of its machines", all_of(by_look,
             replaced("smqueue.protocols.transition.settle",
                      lambda keys, op, *_, certain: [("ZREM", keys.operations, op)])),
             "ending", ("stopped_first", "pump")),
    Mutation("a script moves whoever is there", scripted("move", (SAME_GUARD, "false"),
             ("past[1] or past[2]", "false"), ("redis.call('HEXISTS', active, to_field) == 1", "false")),
             "claimed", ("stopped_first", "drain", "lease_passes")),
    Mutation("a script moves two into one state", scripted("move", ("redis.call('HEXISTS', active, to_field) == 1",
             "false")), "claimed", ("stopped_first", "stopped_second")),
    Mutation("a script does not see a past", scripted("move", ("past[1] or past[2]", "false")), "ending",
             ("stopped_first", "stopped_second")),
    Mutation("a script does not see controls", scripted("move", ("prefix .. 'control:' .. op_key", "of_type")),
             "claimed", ("stopped_first", "pause")),
    Mutation("a script does not see watchers", scripted("move", ("prefix .. 'watchers:' .. op_key", "of_type")),
             "followed", ("stopped_first", "drain")),
    Mutation("a script does not see what came early", scripted("move", ("'inbox:'", "'none:'")), "claimed",
             ("stopped_first", "signal_end")),
    Mutation("a script ends an operation with any of its machines", scripted("move", ("if alone or", "if true or")),
             "ending", ("stopped_first", "pump")),
    Mutation("a script does not register who comes to wait", scripted("move", ("put('ZADD', waiting",
             "put('EXISTS', waiting")), "claimed", ("stopped_first", "signal_end")),
    Mutation("a signal does not ask for its attempt", scripted("signal", ("if said then", "if false then")),
             "waiting", ("signal_unnamed", "pump"), 1),
    Mutation("retention does not look again", scripted("forget", ("if redis.call('EXISTS', KEYS[1]) == 1 then",
             "if false then")), "over", ("sweep", "add_short")),
    Mutation("a watcher looks first and registers then", replaced("smqueue.relay.Relay.look", _look_then_register),
             "followed", ("drain", "stopped_first")),
    Mutation("a look that was in vain forgets a ring", scripted("look_again", ("if ours then", "if true then")),
             "followed", ("drain", "stopped_first")),
    Mutation("a request is removed after it was done", all_of(scripted("signal", (REMOVED_WITH_IT,
             "not redis.call('LPOS', requests, request)")),
             replaced("smqueue.relay.Relay._signal", _apply_then_remove)), "left_behind", ("own", "relay"), 1),
    Mutation("a lone machine does not register when another comes", replaced("smqueue.protocols.spawn.register",
             lambda *_: []), "waiting", ("add_batch", "pump")),
    Mutation("a cancelling does not look how it was begun", replaced("smqueue.cancelling._Operation._look", _look_once),
             "kept", ("cancel", "cancel_by_force")),
    Mutation("a held machine is not looked for again", scripted("hold", ("if redis.call('EXISTS', KEYS[2]) == 1 then",
             "if true then")), "claimed", ("stopped_first", "pause", "resume")),
]  # fmt: skip
