"""When two runs have come to the same: then what may happen from there is explored but once."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable

from smqueue.testing.store import Store

ID = re.compile(r"(?<![\w-])[\w-]{16}(?![\w-])")
"""What looks like an id that smqueue has made."""

PASSING = ("hint", "updates", "moves", "tallies", "early", "workers", "watched", "watch", "roused", "meta")
RANDOM = ("marker:", "reply:")


def fingerprint(store: Store, given: Collection[str], *more: Hashable) -> int:
    """A number that is the same when all that is stored is the same, but for the ids that smqueue has made.

    Args:
        store: Where.
        given: What looks like such an id, and is the user's.
        more: What counts, too.
    """
    lines = [f"{store.now_us}"]
    for key in sorted(store.data):
        name = key.partition("}:")[2]
        if name in PASSING or name.startswith(RANDOM):
            continue
        value = store.data[key]
        lines.append(f"{key} {sorted(value.items()) if isinstance(value, dict) else value!r}")
    names: dict[str, str] = {}

    def renamed(found: re.Match[str]) -> str:
        return found[0] if found[0] in given else names.setdefault(found[0], f"#{len(names)}")

    return hash((ID.sub(renamed, "\n".join(lines)), *more))
