"""One worker and one Flower for the tests of a file."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from smqueue.embedded import EmbeddedServer
from tests.flower.site import Site, flower
from tests.inprocess import play
from tests.shopping import Shop
from tests.workers import running


@pytest.fixture(scope="module")
def world(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop with a worker."""
    name = f"flower-{uuid.uuid4().hex[:8]}"
    shop = Shop(server.url, server.broker_url, name, tmp_path_factory.mktemp("shop"))
    worker = shop.worker("--pool", "solo")
    with running(worker):
        worker.wait_ready()
        yield shop
    if keys := list(shop.redis.scan_iter(match=f"*{name}*", count=1000)):
        shop.redis.unlink(*keys)


@pytest.fixture(scope="module")
def site(world: Shop) -> Iterator[Site]:
    """A Flower in which everybody who reaches it may steer."""
    with flower(world, env={"FLOWER_UNAUTHENTICATED_API": "1"}) as found:
        yield found


__all__ = ["play", "site", "world"]
