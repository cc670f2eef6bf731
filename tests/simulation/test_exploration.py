"""Every pair of things that can meet, in every interleaving, with a fault at every point; and what must be caught."""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from importlib.resources import files

import pytest

import smqueue.protocols
from tests.simulation.explorer import Violated
from tests.simulation.mutations import MUTATIONS, Mutation, by_look
from tests.simulation.pairs import ACTORS, STAGES, explore, pairs, traces
from tests.simulation.stages import signal_many, signal_unnamed

BY_NAME = {actor.__name__: actor for actor in [*ACTORS, signal_many, signal_unnamed]}
TRIPLES = [
    ("waiting", "signal_end", "drain", "deadline_passes"),
    ("waiting", "signal_end", "signal_mid", "drain"),
    ("waiting", "attempt", "signal_end", "lease_passes"),
    ("claimed", "stopped_first", "drain", "lease_passes"),
    ("claimed", "stopped_first", "stopped_second", "signal_stay"),
    ("claimed", "stopped_first", "pause", "resume"),
    ("claimed", "stopped_first", "stopped_second", "cancel"),
    ("ending", "stopped_first", "stopped_second", "add"),
    ("staying", "stopped_first", "signal_end", "deadline_passes"),
    ("staying", "stopped_first", "drain", "lease_passes"),
    ("again", "stopped_first", "attempt_under_way", "signal_end"),
    ("followed", "stopped_first", "drain", "cancel"),
    ("empty", "add", "add", "add"),
    ("empty", "add", "signal_end", "drain"),
    ("early", "add", "add_batch", "signal_end"),
    ("over", "sweep", "sweep", "add_short"),
    ("left_behind", "own", "relay", "cancel"),
    ("quarantined", "retry", "signal_stay", "drain"),
]
"""Threes that two cannot show; without a fault, for those come with the pairs."""

MANY = [
    ("empty", "add"), ("waiting", "drain"), ("waiting", "signal_end"), ("waiting", "attempt"), ("waiting", "add_batch"),
    ("waiting", "deadline_passes"), ("waiting", "cancel"), ("claimed", "stopped_first"), ("ending", "stopped_first"),
]  # fmt: skip
"""Who meets ``signal_many``: two signals in one write, each of which the pairs have alone."""

LOOKING = [
    ("claimed", "stopped_first", "stopped_second"), ("claimed", "stopped_first", "drain"),
    ("claimed", "stopped_first", "pause"), ("claimed", "stopped_first", "cancel"),
    ("claimed", "stopped_first", "signal_end"), ("claimed", "stopped_first", "count"),
    ("ending", "stopped_first", "stopped_second"), ("ending", "stopped_first", "add"),
    ("followed", "stopped_first", "drain"), ("decided", "drain", "signal_end"), ("decided", "drain", "lease_passes"),
]  # fmt: skip
"""Where most machines move by a script, and those that do not are to be seen all the same."""

READ_ONLY = {
    "claim.pump", "runs.peek", "others.has_finished", "others.has_reached", "cancel.unstarted",
}  # fmt: skip
"""What changes nothing needs nobody to meet."""


@pytest.mark.parametrize("stage", [make.__name__ for make in STAGES])
@pytest.mark.parametrize("actor", [actor.__name__ for actor in ACTORS])
def test_pairs(stage: str, actor: str, record_property: pytest.RecordProperty) -> None:
    """Whatever shares a key may meet at any step, with one fault anywhere: nothing is lost, nothing is done twice
    (semantics 5, 11, 15, 17, 18, 19, 22, 27)."""
    for one, other in pairs(stage):
        if one.__name__ == actor:
            record_property("explored", {"pairs": 1, **explore(stage, one, other)})


@pytest.mark.parametrize("case", TRIPLES, ids="-".join)
def test_triples(case: tuple[str, ...], record_property: pytest.RecordProperty) -> None:
    """Three that meet: nothing is lost, nothing is done twice (semantics 5, 15, 18)."""
    stage, *actors = case
    record_property("explored", {"triples": 1, **explore(stage, *[BY_NAME[name] for name in actors], faults=0)})


@pytest.mark.parametrize("case", MANY, ids="-".join)
def test_scripts_of_one_write(case: tuple[str, str], record_property: pytest.RecordProperty) -> None:
    """Others may come between the scripts of one write, and any of their replies be lost (semantics 5, 11)."""
    stage, other = case
    record_property("explored", {"pairs": 1, **explore(stage, signal_many, BY_NAME[other])})


@pytest.mark.parametrize("case", LOOKING, ids="-".join)
def test_moves_by_a_look(case: tuple[str, ...], record_property: pytest.RecordProperty) -> None:
    """Machines that a script would move, moved by a look and an EXEC: the same promises (semantics 5, 15, 18, 27)."""
    stage, *actors = case
    found = explore(stage, *[BY_NAME[name] for name in actors], planted=by_look)
    record_property("explored", {"pairs": 1, **found})


@pytest.mark.parametrize("case", [("waiting", "drain"), ("empty", "add")], ids="-".join)
def test_a_signal_without_an_id(case: tuple[str, str], record_property: pytest.RecordProperty) -> None:
    """A request that comes late, after its repetition, is known by its attempt: the signal is taken once (semantics
    11)."""
    stage, other = case
    record_property("explored", {"pairs": 1, **explore(stage, signal_unnamed, BY_NAME[other])})


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_planted_bugs_are_caught(mutation: Mutation) -> None:
    """A known way to get a protocol wrong is found, and the same exploration finds nothing without it."""
    actors = [BY_NAME[name] for name in mutation.actors]
    with pytest.raises(Violated):
        explore(mutation.stage, *actors, faults=mutation.faults, planted=mutation.plant)
    explore(mutation.stage, *actors, faults=mutation.faults)


def test_every_protocol_and_script_takes_part() -> None:
    """A protocol or script that no actor runs has no place here: whoever writes one gives it an actor."""
    run = {name for make in STAGES for trace in traces(make.__name__).values() for name in trace.code}
    scripts = {entry.name for entry in (files("smqueue") / "scripts").iterdir() if entry.name[0] != "_"}
    assert scripts - run == set()
    assert protocols() - run == READ_ONLY - run


def protocols() -> set[str]:
    """All public functions of ``smqueue.protocols`` that make round trips."""
    found: set[str] = set()
    for module in pkgutil.iter_modules(smqueue.protocols.__path__):
        named = import_module(f"smqueue.protocols.{module.name}")
        for name, value in vars(named).items():
            if inspect.isgeneratorfunction(value) and value.__module__ == named.__name__ and name[0] != "_":
                found.add(f"{module.name}.{name}")
    return found
