"""What a record is known by, and that nothing else makes two of them one."""

from __future__ import annotations

import json
from typing import cast

from smqueue import InactiveState, Module, State, StateMachine, Transaction
from tests.inprocess import Local, Play, machines

doors = Module("doors")
push = doors.signal("push")


@doors.state
class Shut(State):
    colour: str
    floor: int = 0


@doors.state
class Ajar(State):
    colour: str


@doors.state(terminal=True)
class Open(State):
    colour: str


@doors.on(Shut, push)
def ajar(tx: Transaction, state: Shut, _: None) -> Ajar:
    tx.incrby("pushed")
    return Ajar(state.colour)


@doors.on(Ajar, push)
def wide(tx: Transaction, state: Ajar, _: None) -> Open:
    return Open(state.colour)


def test_a_record_is_known_by_operation_instance_and_full_state(play: Play) -> None:
    """A look-up finds a record by operation, module instance and every field of the state (semantics 13)."""
    local = play(left=doors, right=doors)
    local.executor.add_state_machines(machines("op", Shut("red", 2), module="left"))
    for there, machine in [
        (True, StateMachine("op", Shut("red", 2), "left")),
        (False, StateMachine("op", Shut("red", 3), "left")),
        (False, StateMachine("op", Shut("blue", 2), "left")),
        (False, StateMachine("op", Ajar("red"), "left")),
        (False, StateMachine("op", Shut("red", 2), "right")),
        (False, StateMachine("po", Shut("red", 2), "left")),
        (False, StateMachine("op", Shut("red", 2), "nobody")),
    ]:
        assert local.executor.contains_active_state(machine) is there, machine
        assert local.executor.contains_inactive_state(machine) is False


def test_the_value_of_an_active_record_is_no_part_of_its_identity(play: Play) -> None:
    """What is stored under a record's field says when and by whom; the state is in the field alone (semantics 13)."""
    local = play(doors=doors)
    local.executor.add_state_machines(machines("op", Shut("red")))
    ((field, value),) = cast("dict[bytes, bytes]", local.redis.hgetall(local.keys().active("op"))).items()
    assert b"red" in field
    assert b"red" not in value


def test_a_machine_keeps_its_id_and_counts_its_steps(play: Play) -> None:
    """One machine id lives through all transitions, and its step counts them: 1, 2, 3 (semantics 13)."""
    local = play(doors=doors)
    (machine,) = local.executor.add_state_machines(machines("op", Shut("red")))
    stood: list[tuple[State, str, int]] = []

    def look() -> None:
        stood.extend((m.state, value.machine_id, value.step) for m, value in local.executor.get_active_states("op"))

    look()
    for _ in range(2):
        local.executor.signal("op", push)
        local.run()
        look()
    assert stood == [(Shut("red"), machine, 1), (Ajar("red"), machine, 2)]
    past = {m.state: value for m, value in local.executor.get_inactive_states("op")}
    assert {state: (value.machine_id, value.step) for state, value in past.items()} == {
        Shut("red"): (machine, 1), Ajar("red"): (machine, 2), Open("red"): (machine, 3),
    }  # fmt: skip
    assert all(isinstance(value, InactiveState) for value in past.values())
    history = cast("list[bytes]", local.redis.lrange(local.keys().history("op"), 0, -1))
    assert [(json.loads(one)["machine"], json.loads(one)["step"]) for one in history] == [
        (machine, n) for n in (1, 2, 3)
    ]


def test_ids_of_machines_differ(play: Play) -> None:
    """No two machines have one id: not within a call, an operation, or over operations (semantics 13)."""
    local = play(left=doors, right=doors)
    batch = [StateMachine(op, Shut(c), m) for op in ("1", "2") for c in "rgb" for m in ("left", "right")]
    ids = [
        *local.executor.add_state_machines(batch),
        *local.executor.add_state_machines(machines("3", Ajar("r"), module="left")),
    ]
    assert len(set(ids)) == 13


def _moved(local: Local, machine: StateMachine) -> bool:
    assert local.executor.contains_active_state(machine) != local.executor.contains_inactive_state(machine)
    return local.executor.contains_inactive_state(machine)


def test_equal_states_elsewhere_are_independent(play: Play) -> None:
    """Equal states in two instances or two operations are four machines: one moves, the others stay (semantics 14)."""
    local = play(left=doors, right=doors)
    four = [StateMachine(op, Shut("red"), id) for op in ("1", "2") for id in ("left", "right")]
    local.executor.add_state_machines(four)
    for n, machine in enumerate(four):
        assert not _moved(local, machine)
        local.executor.signal(machine.operation_id, push, module=machine.module)
        local.run()
        assert [_moved(local, one) for one in four] == [i <= n for i in range(4)]
    assert (local.data("left", "pushed"), local.data("right", "pushed")) == (b"2", b"2")


def test_instances_with_confusable_ids_are_independent(play: Play) -> None:
    """Ids that read alike once joined to a key or a field are still two instances and two operations (semantics 14)."""
    names = ["m", "m:n", "m n", "m%20n", "m%3An", "M", "m{", "m\n"]
    local = play(**dict.fromkeys(names, doors))
    added = [StateMachine(op, Shut("red"), id) for op in ("op", "op:m", "op m", "op%3Am") for id in names]
    assert len(set(local.executor.add_state_machines(added))) == len(added)
    local.executor.signal("op", push, module="m")
    local.executor.signal("op:m", push, module="m:n")
    local.run()
    assert [machine for machine in added if _moved(local, machine)] == [
        StateMachine("op", Shut("red"), "m"), StateMachine("op:m", Shut("red"), "m:n"),
    ]  # fmt: skip
