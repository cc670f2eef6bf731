"""All that produces, waits and follows, behind one face: ``Client``'s, which blocks and speaks JSON."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from smqueue import AsyncClient, Client, Executor, StateMachine, Update
from smqueue.relay import machine_from_json
from tests.contract.deployed import Deployed

LIMIT_S = 120
"""Longer than anything waits here: a call that does not come back fails its test."""


class OnLoop:
    """An asynchronous client, called from a thread: its coroutines run on a loop of their own.

    Args:
        client: Its ``async`` methods block here, its asynchronous iterators are iterators.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            made = getattr(self._client, name)(*args, **options)
            return self.wait(made) if inspect.isawaitable(made) else FollowedOnLoop(self, made)

        return call

    def wait(self, made: Any) -> Any:
        """What a coroutine returns."""

        async def bounded() -> Any:
            return await asyncio.wait_for(made, LIMIT_S)

        return asyncio.run_coroutine_threadsafe(bounded(), self._loop).result()

    def close(self) -> None:
        """Close the client, and stop the loop."""
        self.wait(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)
        self._loop.close()


class FollowedOnLoop:
    """Asynchronous updates as blocking ones."""

    def __init__(self, on_loop: OnLoop, updates: Any) -> None:
        self._on_loop, self._updates = on_loop, updates

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Update:
        try:
            return self._on_loop.wait(self._updates.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        self._on_loop.wait(self._updates.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_loop.wait(self._updates.aclose())


class InJson:
    """What takes typed machines, given JSON.

    Args:
        executor: With the modules.
        client: It, or its asynchronous client on a loop.
    """

    def __init__(self, executor: Executor, client: Any) -> None:
        self._executor, self._client = executor, client

    def add(self, machines: list[Any], exist_ok: bool = False, **_: Any) -> list[str]:
        add: Any = self._executor.add_state_machines if self._client is self._executor else self._client.add
        return add([self._typed(one) for one in machines], exist_ok)

    def signal(self, operation_id: str, signal: str, payload: Any = None, **options: Any) -> Any:
        options.pop("timeout", None)  # it waits for no worker
        return self._client.signal(operation_id, signal, payload, **options)

    def await_operation(self, operation_id: str, timeout: Any = None) -> None:
        self._client.await_operation(operation_id, timeout)

    def await_active_state(self, machine: Any, timeout: Any = None) -> Any:
        return self._client.await_active_state(self._typed(machine), timeout)

    def await_inactive_state(self, machine: Any, timeout: Any = None) -> Any:
        return self._client.await_inactive_state(self._typed(machine), timeout)

    def subscribe(self, *args: Any, **options: Any) -> FollowedInJson:
        return FollowedInJson(self._notifier.subscribe(*args, **options))

    def subscribe_all(self, *args: Any, **options: Any) -> FollowedInJson:
        return FollowedInJson(self._notifier.subscribe_all(*args, **options))

    @property
    def _notifier(self) -> Any:
        return self._executor.notifier if self._client is self._executor else self._client

    def _typed(self, machine: Mapping[str, Any]) -> StateMachine:
        return machine_from_json(self._executor.instances, machine)


class FollowedInJson:
    """Updates whose states are as a ``Client`` has them."""

    def __init__(self, updates: Any) -> None:
        self._updates = updates

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Update:
        update = next(self._updates)
        return replace(update, state={"type": type(update.state).__name__, "state": vars(update.state)})

    def __enter__(self) -> Self:
        self._updates.__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        self._updates.__exit__(*about)


WITHOUT_CODE = ("Client", "AsyncClient")
WITH_CODE = ("Executor", "async_client()")


@contextmanager
def opened(kind: str, shop: Deployed) -> Generator[Any]:
    """One of them, for a deployment."""
    match kind:
        case "Client":
            with Client(str(shop.url), shop.namespace) as client:
                yield client
        case "AsyncClient":
            on_loop = OnLoop(AsyncClient(str(shop.url), shop.namespace))
            yield on_loop
            on_loop.close()
        case "Executor":
            yield InJson(shop.executor, shop.executor)
        case _:
            on_loop = OnLoop(shop.executor.async_client())
            yield InJson(shop.executor, on_loop)
            on_loop.close()
