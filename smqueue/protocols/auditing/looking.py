"""How an audit looks: at many things in few round trips first, and at what seems wrong once more, in one instant.

A check is a plain function of what it has looked at. The first look at it is not atomic, and on a running namespace it
may have seen two moments. So whatever it finds is judged again on replies that all come from one EXEC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from smqueue.keys import Keys
from smqueue.protocols.auditing.problems import Kind, Problem
from smqueue.roundtrip import Command, Commit, LostReply, Read, Run, Steps, back_off, commit, read

CHUNK = 500
"""Commands of one round trip, at most."""
T = TypeVar("T")
MAX_LOOKS = 50
"""How often one thing is looked at: each look may ask for one more, and a repair may meet a conflict."""


class Unknown(Exception):
    """A check needs what has not been looked at yet."""


class WrongType(Exception):
    """A key holds another type than it should."""

    def __init__(self, command: Command, problem: str) -> None:
        super().__init__(command, problem)
        self.command, self.problem = command, problem


def looks(watch: Sequence[str], commands: Iterable[Command]) -> Steps[list[Any]]:
    """``read``, whose errors are values only where a key has another type.

    Raises:
        Exception: The server's, for any other refusal: we may not look.
    """
    return refused((yield from read(watch, *commands)))


def refused(replies: Sequence[Any]) -> list[Any]:
    """The replies, if none is an error but that a key has another type; raises the first that is."""
    for reply in replies:
        if isinstance(reply, Exception) and "WRONGTYPE" not in str(reply):
            raise reply
    return list(replies)


class Sight:
    """What a check can see: replies by command, and which ones it lacks."""

    def __init__(self, known: Mapping[Command, Any]) -> None:
        self._known = known
        self.missing: list[Command] = []

    def __call__(self, *command: Any) -> Any:
        """The reply to one command.

        Raises:
            Unknown: It is not known yet.
            WrongType: It was refused.
        """
        return self.all([command])[0]

    def all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to several, so that they are fetched together; raises as for one."""
        self.missing += [command for command in commands if command not in self._known]
        if self.missing:
            raise Unknown
        replies = [self._known[command] for command in commands]
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Exception):
                raise WrongType(command, str(reply))
        return replies

    @property
    def now_ms(self) -> int:
        """Redis's clock."""
        seconds, micros = self("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


Check = Callable[[Sight], Iterable[Problem]]


def suspects(checks: Sequence[Check]) -> Steps[list[Check]]:
    """Those that find something at the first, hasty look; a round trip for each 500 commands."""
    known: dict[Command, Any] = {}
    found: list[Check] = []
    rest = list(checks)
    while rest:
        asked: dict[Command, None] = {}
        again: list[Check] = []
        for check in rest:
            sight = Sight(known)
            try:
                if list(_judged(check, sight)):
                    found.append(check)
            except Unknown:
                again.append(check)
                asked.update(dict.fromkeys(sight.missing))
        commands = list(asked)
        for at in range(0, len(commands), CHUNK):
            chunk = commands[at : at + CHUNK]
            known.update(zip(chunk, (yield from looks([], chunk)), strict=True))
        rest = again
    return found


def judge(check: Check) -> Steps[list[Problem]]:
    """What a check finds when all that it looks at is of one instant."""
    commands: dict[Command, None] = {}
    for _ in range(MAX_LOOKS):
        replies: Any = []
        if commands:
            try:
                replies = refused((yield Commit(tuple(commands))))
            except LostReply:
                continue
        sight = Sight(dict(zip(commands, replies, strict=True)))
        try:
            return list(_judged(check, sight))
        except Unknown:
            commands.update(dict.fromkeys(sight.missing))
    return []  # what it is about changes too often to be seen: it lives


def mend(keys: Keys, check: Check) -> Steps[tuple[list[Problem], list[Problem]]]:
    """Look once more under WATCH, and mend in one EXEC what can be mended.

    Schedules and other zsets of the whole namespace are not watched, for they change all the time; what is written to
    them rests on watched keys of the machine or operation, and changes nothing that is there already.

    Returns:
        What was mended; and what is left.
    """
    shared = {keys.schedule, keys.hosted, keys.operations, keys.finished, keys.quarantine, keys.requests}
    commands: dict[Command, None] = {}
    doubtful: list[Problem] = []
    for attempt in range(MAX_LOOKS):
        watch = sorted({str(command[1]) for command in commands if len(command) > 1} - shared)
        try:
            replies: Any = (yield from looks(watch, commands)) if commands else []
            sight = Sight(dict(zip(commands, replies, strict=True)))
            try:
                problems = list(_judged(check, sight))
            except Unknown:
                commands.update(dict.fromkeys(sight.missing))
                continue
            writes = [command for problem in problems for command in problem.mend]
            if not writes:
                return [one for one in doubtful if one not in problems], problems
            doubtful = [problem for problem in problems if problem.mend]
            done = yield from commit(writes)
        except LostReply:
            continue
        if done is not None:
            return doubtful, [problem for problem in problems if not problem.mend]
        doubtful = []
        yield from back_off(attempt)
    return [], (yield from judge(check))


def _judged(check: Check, sight: Sight) -> Iterable[Problem]:
    try:
        yield from check(sight)
    except WrongType as wrong:
        yield wrong_type(wrong)


def wrong_type(wrong: WrongType) -> Problem:
    """The problem that a key of another type is."""
    return Problem(
        Kind.WRONG_TYPE, "", str(wrong.command[1]), f"{wrong.command[0]} {wrong.command[1]}: {wrong.problem}",
        "not mended: somebody else has written to this key; move what is there away, then verify again",
    )  # fmt: skip


def together(protocols: Sequence[Steps[T]]) -> Steps[list[T]]:
    """Protocols in lock step: the reads that they wait for go out in one round trip, all else one by one."""
    runs = [Run(steps) for steps in protocols]
    while waiting := [run for run in runs if run.request is not None]:
        reads = [(run, run.request) for run in waiting if isinstance(run.request, Read)]
        if not reads:
            for run in waiting:
                run.answer((yield run.request))  # type: ignore[misc]
            continue
        replies = yield from looks([], [command for _, request in reads for command in request.commands])
        at = 0
        for run, request in reads:
            run.answer(replies[at : at + len(request.commands)])
            at += len(request.commands)
    return [run.result() for run in runs]
