"""A keyed hash over each machine's steps: what is changed, removed, inserted or reordered without the key shows."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

from smqueue.records import compact

SHORTEST = 16
"""Characters of a key: fewer could be guessed."""


class Chain:
    """Makes the seals of steps.

    Args:
        key: The secret; all processes of a namespace, and whoever verifies it, have the same.
    """

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def __repr__(self) -> str:
        return "Chain()"

    def seal(self, op: str, before: str, entry: Mapping[str, Any]) -> str:
        """The seal of a step: 22 characters, 128 bits, of HMAC-SHA256.

        Args:
            op: The operation.
            before: The seal of the machine's step before; empty if there is none.
            entry: The step as it is stored, with or without its seal.
        """
        plain = compact({name: value for name, value in entry.items() if name != "seal"})
        mac = hmac.digest(self._key, compact([op, before, plain]).encode("utf-8", "surrogatepass"), "sha256")
        return urlsafe_b64encode(mac[:16]).decode().rstrip("=")
