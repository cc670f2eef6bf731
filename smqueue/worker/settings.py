"""The settings of an executor: given to ``build``, else Celery's configuration, else the environment; read late."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from celery import Celery

from smqueue.chain import SHORTEST, Chain
from smqueue.deployment import DEFAULT_NAMESPACE, Settings
from smqueue.errors import DefinitionError, EagerRefused, NoDeployment


@dataclass(frozen=True)
class Given:
    """What ``build`` was called with; ``None`` is not given."""

    url: str | None = None
    namespace: str | None = None
    durability: str | None = None


def settings_of(app: Celery, given: Given) -> Settings:
    """Read the settings.

    Raises:
        NoDeployment: No URL anywhere.
        EagerRefused: ``task_always_eager`` is set.
        DefinitionError: A setting of the wrong type.
    """
    conf: Any = app.conf
    if conf.task_always_eager:
        raise EagerRefused
    url = given.url or conf.get("smqueue_url") or os.environ.get("SMQUEUE_URL")
    if not url:
        raise NoDeployment
    namespace = given.namespace or conf.get("smqueue_namespace") or os.environ.get("SMQUEUE_NAMESPACE")
    durability = given.durability or conf.get("smqueue_durability") or None
    check_durability(durability, "the Celery configuration")
    return Settings(url, namespace or DEFAULT_NAMESPACE, whole(app, "smqueue_shards", 1), durability)


def check_durability(durability: Any, where: str) -> None:
    """Raises DefinitionError for one that there is not."""
    if durability not in (None, "fsync", "replica"):
        raise DefinitionError(f"durability is {durability!r}; there are 'fsync' and 'replica', and None", where)


def history_chain(app: Celery | None) -> Chain | None:
    """What seals the steps of histories; ``None`` when no key is set. Without an application the environment counts.

    Raises:
        DefinitionError: The key is too short.
    """
    conf: Any = app.conf if app is not None else {}
    key = conf.get("smqueue_history_key") or os.environ.get("SMQUEUE_HISTORY_KEY")
    if not key:
        return None
    if len(str(key)) < SHORTEST:
        raise DefinitionError(
            f"smqueue_history_key has {len(str(key))} characters: give it at least {SHORTEST}", "the configuration"
        )
    return Chain(str(key))


def whole(app: Celery, name: str, default: int) -> int:
    """A setting that is a whole number."""
    value: Any = app.conf.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DefinitionError(f"{name} is {value!r}, not a whole number", "the Celery configuration") from None


def queue_of(app: Celery, name: str) -> str:
    """The queue that a setting names; the default one, so that a plain worker consumes it."""
    return str(app.conf.get(name) or app.conf.task_default_queue)
