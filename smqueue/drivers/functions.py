"""The library of functions on the servers: ``smqueue/functions.lua``, for producers without a library of their own."""

from __future__ import annotations

from importlib.resources import files

from redis.exceptions import RedisError, ResponseError

from smqueue.drivers.blocking import Blocking
from smqueue.drivers.connect import exchange, shown, translated
from smqueue.drivers.nodes import Node
from smqueue.roundtrip import Command

NAME = "smqueue"


def text() -> str:
    """The library, as FUNCTION LOAD takes it."""
    return (files("smqueue") / "functions.lua").read_text()


def load(url: str) -> list[str]:
    """Load the library, in place of an earlier one, on every primary; it is kept and replicated as data are.

    Returns:
        The servers' addresses.

    Raises:
        StoreUnavailable: One does not answer; others may have it by now. Loading again changes nothing.
        StoreRefused: One does not take it: the user needs +function|load.
    """
    return _everywhere(url, ("FUNCTION", "LOAD", "REPLACE", text()))


def remove(url: str) -> list[str]:
    """Remove the library from every primary, where it is there; returns and raises as ``load``."""
    return _everywhere(url, ("FUNCTION", "DELETE", NAME))


def _everywhere(url: str, command: Command) -> list[str]:
    driver = Blocking(url)
    try:
        done = [node for node in driver.nodes().every() if _does(node, command)]
    finally:
        driver.close()
    return [shown(node.url) for node in done]


def _does(node: Node, command: Command) -> bool:
    """Whether it has done so; not when there was nothing to remove."""
    connection = node.connect()
    try:
        (reply,) = exchange(connection, [command])
    except (RedisError, OSError) as error:
        connection.disconnect()
        raise translated(node.url, error) from None
    finally:
        node.release(connection)
    if isinstance(reply, ResponseError) and "Library not found" in str(reply):
        return False
    if isinstance(reply, Exception):
        raise translated(node.url, reply)
    return True
