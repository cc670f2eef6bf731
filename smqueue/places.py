"""Where something was defined, as ``file:line``: what every definition error names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FrameType
from typing import Any

_OURS = frozenset(
    f"smqueue.{name}"
    for name in ("builder", "checks", "decorators", "modules", "places", "registering", "retry", "triggers")
)


def user_frame() -> FrameType | None:
    """Return the innermost frame that is not one of the defining modules of smqueue itself."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in _OURS:
        frame = frame.f_back
    return frame


def here() -> str:
    """Return the place in the user's code that called into smqueue."""
    frame = user_frame()
    return "unknown" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def local_names() -> Mapping[str, Any]:
    """Return a snapshot of the names local to the function that defines something; empty at module level.

    Annotations of what is defined inside a function (a test, a factory) may name only local things, which no
    function's globals hold once they are strings.
    """
    frame = user_frame()
    if frame is None or frame.f_locals is frame.f_globals:
        return {}
    return dict(frame.f_locals)


def function_of(fn: Any) -> Any:
    """Return the Python function behind a callable (a partial, a method, an object), or None for one written in C."""
    while hasattr(fn, "func"):  # functools.partial
        fn = fn.func
    while hasattr(fn, "__wrapped__"):  # functools.wraps
        fn = fn.__wrapped__
    fn = getattr(fn, "__func__", fn)
    if not hasattr(fn, "__code__"):
        fn = vars(type(fn)).get("__call__")
    return fn if hasattr(fn, "__code__") else None


def place_of(fn: Any) -> str:
    """Return where the code of a callable is."""
    function = function_of(fn)
    return "unknown" if function is None else f"{function.__code__.co_filename}:{function.__code__.co_firstlineno}"
