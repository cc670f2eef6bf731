"""What may be shown of a stored state: all but its secrets."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

from smqueue.errors import SmqueueError
from smqueue.instances import Instances
from smqueue.records import Field, loads
from smqueue.schemas import HIDDEN
from smqueue.schemas.sealed import shown


def shown_state(instances: Instances, op: str, field: str, version: int) -> Any:
    """A record's state as JSON, its secrets hidden.

    Of a record that cannot be loaded here, what its type keeps secret and what that does not know are hidden, for the
    code that wrote it may keep more secret. Without its module it is as stored: what is encrypted is hidden.

    Raises:
        ValueError: It is garbage.
    """
    with suppress(SmqueueError):
        _, placed = instances.load(op, field, version)
        return placed.type.codec.redact(placed.type.codec.dump(placed.state))
    module, type_name, spelled = Field.parse(field)
    data = shown(loads(spelled))
    return _covered(instances, module, type_name, data) if module in instances else data


def _covered(instances: Instances, module: str, type_name: str, data: Any) -> Any:
    """A state that does not load: only values of which it is known that they are no secrets."""
    known: set[str] = set()
    with suppress(SmqueueError):  # a module whose file cannot be imported
        if (state_type := instances.get(module).module.types.get(type_name)) is not None:
            codec = state_type.codec
            data = codec.redact(data)
            known = {field.data_key or name for name, field in getattr(codec.schema, "fields", {}).items()}
    if not isinstance(data, dict):
        return HIDDEN
    return {name: value if name in known else HIDDEN for name, value in cast("dict[str, Any]", data).items()}
