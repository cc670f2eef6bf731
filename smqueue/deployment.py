"""Where a namespace lives: its server, its shards and their keys."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from smqueue.drivers.blocking import Blocking
from smqueue.drivers.driver import Driver
from smqueue.errors import CrossShard, DefinitionError, WrongShardCount
from smqueue.keys import Keys, shard_of
from smqueue.roundtrip import Steps, read

DEFAULT_NAMESPACE = "smqueue"


@dataclass(frozen=True)
class Settings:
    """What a deployment is made of; see ``celeryconfig.py`` for the names in a Celery configuration."""

    url: str
    namespace: str = DEFAULT_NAMESPACE
    shards: int = 1
    durability: str | None = None


class Deployment:
    """A namespace on a server. Nothing is read or connected before the first use."""

    def __init__(
        self,
        settings: Callable[[], Settings],
        driver: Callable[[Settings], Driver] = lambda settings: Blocking(settings.url, settings.durability),
    ) -> None:
        self._settings_of, self._driver_of = settings, driver
        self._connecting: dict[int, threading.Lock] = {}  # by process: one that is held at a fork stays held
        self._read: Settings | None = None
        self._keys: Sequence[Keys] | None = None
        self._made: Driver | None = None
        self._opened: Driver | None = None

    @property
    def settings(self) -> Settings:
        """The settings, read now if they have not been; nothing is connected.

        Raises:
            DefinitionError: There can be no such number of shards.
        """
        if (read := self._read) is None:
            read = self._settings_of()
            if read.shards < 1:
                raise DefinitionError(f"smqueue_shards is {read.shards}; it must be at least 1", "settings")
            self._read = read
        return read

    @property
    def driver(self) -> Driver:
        """The driver; the first time it connects.

        Raises:
            StoreUnavailable, StoreRefused, StoreTooOld: No, or no usable, server.
            WrongShardCount: The namespace was made with another number of shards.
        """
        if (opened := self._opened) is None:
            with self._connecting.setdefault(os.getpid(), threading.Lock()):
                if (opened := self._opened) is None:
                    settings = self.settings
                    self._made = opened = self._made or self._driver_of(settings)  # it knows that nobody has answered
                    opened.run(_enlist(Keys(settings.namespace), settings))
                    self._opened = opened
        return opened

    def close(self) -> None:
        """Close all connections; what is used again connects again."""
        if self._opened is not None:
            self._opened.close()

    def keys(self, operation_id: str) -> Keys:
        """The keys of the shard that an operation lives in."""
        every = self.all_keys()
        return every[shard_of(operation_id, len(every))]

    def all_keys(self) -> Sequence[Keys]:
        """The keys of every shard."""
        if (known := self._keys) is None:
            settings = self.settings
            known = self._keys = keys_of(settings.namespace, settings.shards)
        return known

    def one_shard(self, operation_ids: Sequence[str]) -> Keys:
        """The shard that all these operations live in.

        Raises:
            CrossShard: They live in several.
        """
        if not operation_ids:
            return self.all_keys()[0]
        first = self.keys(operation_ids[0])
        if len(operation_ids) > 1 and any(self.keys(other).shard != first.shard for other in operation_ids[1:]):
            raise CrossShard(", ".join(sorted(set(operation_ids))[:5]))
        return first


@lru_cache(maxsize=64)
def keys_of(namespace: str, shards: int) -> Sequence[Keys]:
    """The keys of each shard of a namespace."""
    return tuple([Keys(namespace, shard) for shard in range(shards)])


def _enlist(keys: Keys, settings: Settings) -> Steps[None]:
    """Note the number of shards when the namespace is made; refuse another one ever after."""
    looks: list[Any] = yield from read([], ("HGET", keys.meta, "shards"))
    if looks[0] is None:
        made = ("HSETNX", keys.meta, "shards", settings.shards)
        replies: list[Any] = yield from read(
            [], made, ("HSETNX", keys.meta, "format", 1), ("HGET", keys.meta, "shards")
        )
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        looks = [replies[-1]]
    if isinstance(looks[0], Exception):
        raise looks[0]
    if int(looks[0]) != settings.shards:
        raise WrongShardCount(settings.namespace, int(looks[0]), settings.shards)
