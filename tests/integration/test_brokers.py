"""Any broker, and any Redis: Debian's redis-server for both, and RabbitMQ for the messages. Everything else runs on the
embedded server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from smqueue.embedded import EmbeddedServer
from tests.apps import shop
from tests.brokers import RABBIT_SCRIPTS, rabbit_server, redis_server
from tests.shopping import Shop, stops_cleanly
from tests.workers import running


@pytest.fixture
def debian_redis(tmp_path: Path) -> Iterator[str]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server on the PATH")
    with redis_server(binary, tmp_path) as url:
        yield url


def test_redis_server_for_state_and_messages(debian_redis: str, tmp_path: Path) -> None:
    """Every kind of trigger runs to its end on redis-server, with a database for the state and one for messages."""
    world = Shop(f"{debian_redis}/0", f"{debian_redis}/1", "redis", tmp_path)
    assert "valkey_version" not in world.redis.info("server")
    with running(worker := world.worker("-c", "2")):
        worker.wait_ready()
        world.run_every_kind()
        stops_cleanly(worker)


def test_state_and_messages_in_one_database(debian_redis: str, tmp_path: Path) -> None:
    """The two share a database and stay out of each other's way: ``celery purge`` deletes messages and no state."""
    world = Shop(f"{debian_redis}/0", f"{debian_redis}/0", "shared", tmp_path)
    world.add("waiting", shop.Packing("waiting"))
    world.add("due", shop.Instant(2))
    assert world.app.control.purge() == 1, "the hint of the one that is due"
    with running(worker := world.worker("-c", "2")):
        worker.wait_ready()
        assert world.ends("due") == [shop.Done("instant")]
        world.run_every_kind()
        world.executor.signal("waiting", shop.packed)
        assert world.ends("waiting") == [shop.Shipped("waiting")]


def test_rabbitmq_for_messages(server: EmbeddedServer, namespace: str, tmp_path: Path) -> None:
    """Every kind of trigger runs to its end with the messages in RabbitMQ and the state in the embedded server."""
    if not (RABBIT_SCRIPTS / "rabbitmq-server").exists():
        pytest.skip(f"there is no RabbitMQ in {RABBIT_SCRIPTS}: on Debian, apt-get install rabbitmq-server")
    with rabbit_server(tmp_path) as url:
        world = Shop(server.url, url, namespace, tmp_path)
        with running(worker := world.worker("-c", "2")):
            worker.wait_ready()
            world.run_every_kind()
            with redis.Redis.from_url(server.url.replace("db=0", "db=1")) as messages:
                assert not list(messages.scan_iter(match=f"*{namespace}*")), "no queue of ours is in Redis"
            stops_cleanly(worker)
