"""A group of protocols is itself a protocol: it yields their round trips merged, so that every driver runs it.

All look in one round trip, all commit in one EXEC. EXEC applies its members in order after all have looked, and WATCH
does not protect them from each other: none may rest on what an earlier one writes. Such a member waits for the next
EXEC. Write against write is no conflict.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar

from smqueue.buffer import INCREMENTS
from smqueue.roundtrip import Call, Calls, Command, Commit, Pause, Read, RoundTrip, Run, Steps

T = TypeVar("T")
Ready = list[tuple[Run[T], Commit]]

MOST_TOGETHER = 32
"""Callers of one script: while it runs, nobody else is served."""
KEYLESS = frozenset({"TIME", "PUBLISH", "SPUBLISH"})


def group(protocols: Iterable[Steps[T]], budget_s: float = float("inf")) -> Steps[list[Run[T]]]:
    """Run protocols together.

    If their EXEC fails, all look again in one trip, and the stale leave; after a second failure each is tried alone.

    Args:
        protocols: They are started one by one; each runs its handler up to its first look.
        budget_s: No further one is started once this much time has gone by.

    Returns:
        How each of those that were started has ended.
    """
    began, runs, spoiled = time.monotonic(), list[Run[T]](), 0
    for steps in protocols:
        runs.append(Run(steps))
        if time.monotonic() - began > budget_s:
            break
    while live := [run for run in runs if run.request is not None]:
        looking = [(run, run.request) for run in live if isinstance(run.request, Read)]
        ready = [(run, run.request) for run in live if isinstance(run.request, Commit)]
        calling = [(run, run.request) for run in live if isinstance(run.request, Call)]
        if looking and (not calling or any(run.watched for run in live)):
            watch = dict.fromkeys(key for _, look in looking for key in look.watch)
            commands = dict.fromkeys(command for _, look in looking for command in look.commands)  # TIME but once
            replies = yield from _ask(Read(tuple(watch), tuple(commands)))
            _share(looking, dict(zip(commands, replies, strict=True)) if isinstance(replies, list) else replies)
            if not isinstance(replies, list):
                _look_again(ready)
        elif len(ready) == len(live):  # an EXEC drops every WATCH: no member may stand between look and commit
            together, later = _disjoint(ready)
            commands, places = _merged([commit.commands for _, commit in together])
            replies = yield from _ask(Commit(tuple(commands)))
            if not isinstance(replies, list):
                spoiled += 1
                for run, _ in ready:
                    run.answer(replies)
                    while spoiled > 1 and run.request is not None:
                        run.answer((yield from _ask(run.request)))
                continue
            for (run, _), place in zip(together, places, strict=True):
                run.answer([replies[at] for at in place])
            for run, _ in later:  # each alone: together, all but the first would only wait again
                run.answer(None)
                while run.request is not None:
                    run.answer((yield from _ask(run.request)))
        else:  # scripts before the first look: those that commit drop every WATCH, as an EXEC does
            for run in live:
                if isinstance(run.request, Pause):
                    run.answer(None)  # the others' work is pause enough
            if calling:
                joined = list(_joined(calling))
                replies = yield from _ask(Calls(tuple([call for call, _ in joined])))
                lost = isinstance(replies, Exception)
                for (call, told), reply in zip(joined, [replies] * len(joined) if lost else replies, strict=True):
                    for at, run in enumerate(told):
                        run.answer([reply[at]] if call.own and isinstance(reply, list) else reply)
                if lost or any(call.commits for _, call in calling):
                    _look_again(ready)
    return runs


def _joined(calling: Sequence[tuple[Run[T], Call]]) -> Iterator[tuple[Call, list[Run[T]]]]:
    """The scripts to run, each with whom it is for: one for those who differ in what is their own alone."""
    alike: dict[Any, list[tuple[Run[T], Call]]] = {}
    for at, (run, call) in enumerate(calling):
        alike.setdefault((call.script, call.args, call.commits) if call.own else at, []).append((run, call))
    for members in alike.values():
        for at in range(0, len(members), MOST_TOGETHER):
            some = members[at : at + MOST_TOGETHER]
            call = some[0][1]
            if len(some) > 1:
                keys = dict.fromkeys(chain.from_iterable([one.keys for _, one in some]))
                own = tuple(chain.from_iterable([one.own for _, one in some]))
                call = Call(call.script, tuple(keys), call.args, own, call.commits)
            yield call, [run for run, _ in some]


def _ask(request: RoundTrip) -> Steps[Any]:
    try:
        return (yield request)
    except Exception as error:  # each member decides for itself
        return error


def _look_again(ready: Ready[T]) -> None:
    """A reply was lost, and with its connection the WATCHes of all: what was looked at may have changed unnoticed."""
    for run, request in ready:
        if run.request is request:
            run.answer(None)


def _share(looking: Sequence[tuple[Run[T], Read]], replies: Any) -> None:
    for run, request in looking:
        run.answer(replies if isinstance(replies, Exception) else [replies[command] for command in request.commands])


def _disjoint(members: Ready[T]) -> tuple[Ready[T], Ready[T]]:
    """Members that can go into one EXEC, and those that rest on a key which an earlier member writes."""
    together, later = Ready[T](), Ready[T]()
    written, replaced, counted = set[Any](), set[Any](), dict[Any, Any]()
    for run, commit in members:
        # An increment makes a key where there was none: a write of another kind to it was not checked for that.
        clash = counted and [c for c in commit.commands if len(c) > 1 and counted.get(c[1], c[0]) != c[0]]
        if clash or not (run.watched.isdisjoint(written) and run.checked.isdisjoint(replaced)):
            later.append((run, commit))
            continue
        together.append((run, commit))
        for command in commit.commands:
            name = command[0]
            if name in INCREMENTS:
                written.add(command[1])
                counted[command[1]] = name
            elif name == "DEL":
                replaced.update(command[1:])
            elif name == "EVAL":
                replaced.update(command[3 : 3 + int(command[2])])
            elif name not in KEYLESS:
                replaced.add(command[1])
        written |= replaced
    return together, later


def _merged(commits: Sequence[Sequence[Command]]) -> tuple[list[Command], list[list[int]]]:
    """The commands of several commits, and where each finds its replies. The same bell is rung but once."""
    commands, places, rung = list[Command](), list[list[int]](), dict[Command, int]()
    for one in commits:
        place = list[int]()
        for command in one:
            at = len(commands)
            if command[0] == "SPUBLISH":
                at = rung.setdefault(command, at)
            if at == len(commands):
                commands.append(command)
            place.append(at)
        places.append(place)
    return commands, places
