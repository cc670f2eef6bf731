"""What can be wrong with what is asked for, as answers of HTTP."""

from __future__ import annotations

from typing import Any

from tornado.web import HTTPError

from smqueue.errors import BrokerUnavailable, InvalidInput, SmqueueError, StoreRefused, StoreUnavailable

AWAY = (StoreUnavailable, StoreRefused, BrokerUnavailable)


class NoSuchOperation(SmqueueError):
    """Nothing is known of operation {operation_id} in namespace {namespace}: it was never started, or has ended and is
    forgotten."""

    fields = ("operation_id", "namespace")
    operation_id: str
    namespace: str


class NoExecutor(SmqueueError):
    """Flower's Celery application has no such machines. Its namespaces: {known}; an executor built on it adds one."""

    fields = ("known",)
    known: str


class Trouble(HTTPError):
    """An answer with an error of ours in it."""

    def __init__(self, error: SmqueueError) -> None:
        self.error = error
        super().__init__(status_of(error), reason=type(error).__name__)


def status_of(error: SmqueueError) -> int:
    """The HTTP status of an error."""
    if isinstance(error, NoSuchOperation | NoExecutor):
        return 404
    if isinstance(error, AWAY):
        return 503
    return 400 if isinstance(error, InvalidInput) else 409


def told_of(error: SmqueueError) -> dict[str, Any]:
    """An error in JSON."""
    told: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, InvalidInput):
        told["field"] = error.field
    return told
