"""What ``Module.on`` and ``Module.on_cancel`` return: decorators that tell type checkers which functions they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, overload

from smqueue.states import Context, State

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from smqueue.transaction import Transaction

    M = TypeVar("M", default=Any)
    S = TypeVar("S", bound=State)
    Out = TypeVar("Out")
    R = TypeVar("R", bound=State | None)
else:  # defaults of type variables come with Python 3.13; only type checkers need them
    from typing import TypeVar

    M = TypeVar("M")
    S = TypeVar("S")
    Out = TypeVar("Out")


class On(Generic[S, Out, M]):
    """The decorator that ``Module.on`` returns. It returns the function unchanged, so one function may have several."""

    def __init__(self, register: Callable[[Any], None]) -> None:
        self._register = register

    @overload
    def __call__(
        self, fn: Callable[[Transaction, S, Out, Context[M, Any]], R], /
    ) -> Callable[[Transaction, S, Out, Context[M, Any]], R]: ...
    @overload
    def __call__(self, fn: Callable[[Transaction, S, Out], R], /) -> Callable[[Transaction, S, Out], R]: ...
    def __call__(self, fn: Any, /) -> Any:
        """Register ``fn`` as the handler of the trigger, under its own name.

        Raises:
            DefinitionError: Not a plain function of three or four positional parameters with a return annotation; or a
                second handler of that name on one state.
        """
        self._register(fn)
        return fn


class OnCancel(Generic[S, M]):
    """The decorator that ``Module.on_cancel`` returns. It returns the function unchanged."""

    def __init__(self, register: Callable[[Any], None]) -> None:
        self._register = register

    @overload
    def __call__(
        self, fn: Callable[[Transaction, S, str | None, Context[M, Any]], None], /
    ) -> Callable[[Transaction, S, str | None, Context[M, Any]], None]: ...
    @overload
    def __call__(
        self, fn: Callable[[Transaction, S, str | None], None], /
    ) -> Callable[[Transaction, S, str | None], None]: ...
    def __call__(self, fn: Any, /) -> Any:
        """Register ``fn`` as the cancel handler.

        Raises:
            DefinitionError: Not a plain function of three or four positional parameters that returns ``None``; or a
                second one for a state.
        """
        self._register(fn)
        return fn
