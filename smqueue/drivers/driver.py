"""What runs protocols: the port that every driver fits."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from smqueue.roundtrip import Steps

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Bell(Protocol):
    """A doorbell, subscribed while it is entered: it says "look again", and whoever looks afterwards misses nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def wait(self, seconds: float) -> None:
        """Until it rings, or for ``seconds``, or for less."""
        ...

    def clock(self) -> float:
        """Seconds by the clock that ``wait`` goes by."""
        ...

    def ring(self) -> None:
        """From another thread: end what waits here."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


class Started(Protocol[T_co]):
    """A protocol under way: what it asks for first may have been sent."""

    def result(self) -> T_co:
        """Read the reply, and go on to the end; raises as ``Driver.run``."""
        ...

    def abandon(self) -> None:
        """Do not go on, unless it has come to its end; whether what was sent is applied is not known."""
        ...


class Driver(Protocol):
    """Runs protocols, one at a time per thread."""

    @property
    def url(self) -> str:
        """Where to."""
        ...

    @property
    def overlaps(self) -> bool:
        """Whether what ``start`` begins is under way before its result is asked for."""
        ...

    def run(self, steps: Steps[T]) -> T:
        """Run a protocol to its end.

        Raises:
            StoreUnavailable: No answer; whether the last request was applied is not known.
            StoreRefused: The server does not take our commands.
            Exception: What the protocol raised.
        """
        ...

    def start(self, steps: Steps[T]) -> Started[T]:
        """Begin a protocol: if it asks for a script first, that is sent, and the server works while the caller does."""
        ...

    def command(self, *args: Any) -> Any:
        """One command outside of any protocol, for looks that need none."""
        ...

    def doorbell(self, *channels: str) -> Bell:
        """A doorbell that rings for any of these channels."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


class Later(Generic[T]):
    """A protocol that is run when its result is asked for."""

    def __init__(self, driver: Driver, steps: Steps[T]) -> None:
        self._driver, self._steps = driver, steps

    def result(self) -> T:
        """Run it."""
        return self._driver.run(self._steps)

    def abandon(self) -> None:
        """Do not run it."""
        self._steps.close()
