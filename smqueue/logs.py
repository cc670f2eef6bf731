"""What log records carry beside their text, so that a formatter for JSON shows it: which machine they are about.

Attributes of the record: ``smqueue_operation_id``, ``smqueue_machine_id``, ``smqueue_module``, ``smqueue_state`` (the
name of its type), ``smqueue_trigger``; those that are not known are missing.
"""

from __future__ import annotations

from smqueue.protocols.claim import Armed, Claimed


def about(
    operation_id: str, *, machine: str = "", module: str = "", state: str = "", trigger: str = ""
) -> dict[str, str]:
    """What to give as ``extra`` to a logger: the attributes that are known."""
    known = {"operation_id": operation_id, "machine_id": machine, "module": module, "state": state, "trigger": trigger}
    return {f"smqueue_{name}": value for name, value in known.items() if value}


def about_machine(one: Claimed | Armed) -> dict[str, str]:
    """The same of a machine that is worked on, with the trigger that has won or whose code runs."""
    placed, trigger = one.placed, one.won if isinstance(one, Claimed) else one.trigger
    return about(placed.op, machine=one.active.machine, module=placed.module, state=placed.type.name, trigger=trigger)
