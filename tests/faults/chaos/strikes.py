"""The faults, by kind: each is a function that lets one hit, and sees it end."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import redis

from tests.faults.chaos.application import QUEUE
from tests.faults.chaos.schedule import Strike
from tests.faults.chaos.site import Site
from tests.waiting import wait_until

REMEMBERED, SENT_LATE = 400, 50
LEASE_S = 4.0
POWER = "power lost"
"""The one kind that ``appendfsync always`` excludes: what was written last never reached the disk."""
BROKER_KILLED = "broker killed"
"""The one kind that there is not where the broker is the state's server."""
UNSYNCED = 200_000
"""Bytes of the append-only file: less than a second's worth at full load."""


Do = Callable[[Site, random.Random, Strike], None]


@dataclass(frozen=True)
class Kind:
    """A kind of fault: how often it comes among the others, and what does it."""

    weight: int
    do: Do


KINDS: dict[str, Kind] = {}


def kind(name: str, weight: int = 1) -> Callable[[Do], Do]:
    """Register a kind of fault."""

    def decorate(do: Do) -> Do:
        KINDS[name] = Kind(weight, do)
        return do

    return decorate


def strike(site: Site, one: Strike) -> None:
    """Let a fault hit, and see it end."""
    rng = random.Random(f"{site.seed}/{one.number}")
    try:
        KINDS[one.kind].do(site, rng, one)
    except Exception as error:
        one.failed = f"{type(error).__name__}: {error}"
    one.ended = time.time()


# --- workers and producers -------------------------------------------------------------------------------------------


@kind("worker killed", 3)
def _(site: Site, rng: random.Random, one: Strike) -> None:
    if post := site.workers.take(rng):
        one.hits(post.name)
        post.child.kill()
        site.renew_worker(post)


@kind("child of a worker killed")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    if post := site.workers.take(rng, "prefork"):
        children = psutil.Process(post.child.pid).children()
        victim = rng.choice(children) if children else None
        one.hits(f"{post.name}, {'nothing' if victim is None else victim.pid}")
        if victim is not None:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
        post.ready = True


@kind("worker stopped past its lease", 2)
def _(site: Site, rng: random.Random, one: Strike) -> None:
    seconds = rng.uniform(LEASE_S + 1, LEASE_S + 4)
    if post := site.workers.take(rng):
        one.hits(f"{post.name} for {seconds:.1f} s")
        group = post.group
        os.killpg(group, signal.SIGSTOP)
        time.sleep(seconds)
        os.killpg(group, signal.SIGCONT)
        post.ready = True


@kind("worker ended warm")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    if post := site.workers.take(rng):
        one.hits(post.name)
        one.detail += f", {post.end(signal.SIGTERM, 20)}"
        site.renew_worker(post)


@kind("worker ended cold")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    if post := site.workers.take(rng):
        one.hits(post.name)
        one.detail += f", {post.end(signal.SIGQUIT, 20)}"
        site.renew_worker(post)


@kind("producer killed")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    if post := site.producers.take(rng):
        one.hits(post.name)
        post.child.kill()
        post.renew()
        post.ready = True


# --- the server of the state -----------------------------------------------------------------------------------------


@contextmanager
def outage(site: Site, one: Strike, detail: str) -> Generator[None]:
    """The state's server takes no writes while the block runs; progress is measured from its end."""
    with site.state_lock:
        one.hits(detail, over=False)
        assert one.began is not None
        site.outages.append((one.began, float("inf")))
        try:
            yield
        finally:
            site.outages[-1] = (one.began, one.is_over())


@kind("server killed", 2)
def _(site: Site, rng: random.Random, one: Strike) -> None:
    seconds = rng.uniform(0, 1.5)
    with outage(site, one, f"away for {seconds:.1f} s and a start"):
        site.state.kill()
        time.sleep(seconds)
        site.state.restart()


@kind(POWER, 2)
def _(site: Site, rng: random.Random, one: Strike) -> None:
    seconds, size = rng.uniform(0, 1.5), rng.randint(1, UNSYNCED)
    with outage(site, one, f"{size:,} bytes not on disk, away for {seconds:.1f} s and a start"):
        site.state.kill()
        newest = max(site.state.data.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime_ns)
        os.truncate(newest, max(0, newest.stat().st_size - size))
        time.sleep(seconds)
        site.state.restart()


@kind("server paused", 2)
def _(site: Site, rng: random.Random, one: Strike) -> None:
    seconds = rng.choice([0.5, 1.5, 3.0, 6.5])  # the last is more than a client waits for a reply
    with outage(site, one, f"for {seconds:.1f} s"):
        os.kill(site.state.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(site.state.pid, signal.SIGCONT)


@kind("server out of memory")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    seconds = rng.uniform(0.3, 2.5)
    with outage(site, one, f"for {seconds:.1f} s"), site.state_client() as client:
        client.config_set("maxmemory", 1)
        time.sleep(seconds)
        client.config_set("maxmemory", 0)


@kind("server read-only")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    seconds = rng.uniform(0.3, 2.5)
    with outage(site, one, f"for {seconds:.1f} s"), site.state_client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")  # where nobody listens: it keeps its data
        time.sleep(seconds)
        client.execute_command("REPLICAOF", "NO", "ONE")


@kind("server short of replicas")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    seconds = rng.uniform(0.3, 2.5)
    with outage(site, one, f"for {seconds:.1f} s"), site.state_client() as client:
        client.config_set("min-replicas-to-write", 1)
        time.sleep(seconds)
        client.config_set("min-replicas-to-write", 0)


# --- the way to it ---------------------------------------------------------------------------------------------------


def _lose(site: Site, one: Strike, fate: str, count: int, late_s: float = 0.0) -> None:
    with site.middle_lock:
        one.hits(f"{count}" + (f", {late_s:.1f} s late" if late_s else ""), over=False)
        site.middle.lose(fate, count, late_s)  # pyright: ignore[reportArgumentType]
        with suppress(AssertionError):  # what is not lost in time is not lost any more
            wait_until(lambda: not site.middle.losing, "all to be lost", 3)
        one.is_over()
        if left := site.middle.forget():
            one.detail += f"; {left} of them not in time"


@kind("replies lost", 2)
def _(site: Site, rng: random.Random, one: Strike) -> None:
    _lose(site, one, "reply", rng.randint(1, 20))


@kind("requests lost")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    _lose(site, one, "request", rng.randint(1, 20))


@kind("requests late", 2)
def _(site: Site, rng: random.Random, one: Strike) -> None:
    _lose(site, one, "late", rng.randint(1, 10), rng.choice([0.05, 0.5, 2.0, LEASE_S + 2]))


@kind("connections cut")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    one.hits("")
    one.detail = f"{site.middle.cut()}"


@kind("network slow")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    delay_s, seconds = rng.uniform(0.01, 0.1), rng.uniform(1, 3)
    with site.middle_lock:
        one.hits(f"{delay_s * 1000:.0f} ms each way for {seconds:.1f} s")
        site.middle.slow(delay_s)
        time.sleep(seconds)
        site.middle.slow(0)


# --- the broker ------------------------------------------------------------------------------------------------------


@kind(BROKER_KILLED)
def _(site: Site, rng: random.Random, one: Strike) -> None:
    seconds = rng.uniform(0, 1.5)
    with site.broker_lock:
        one.hits(f"away for {seconds:.1f} s and a start", over=False)
        site.broker.kill()
        time.sleep(seconds)
        site.broker.restart()
        one.is_over()


@kind("queues deleted", 2)
def _(site: Site, rng: random.Random, one: Strike) -> None:
    with site.broker_lock, site.broker_client() as client:
        one.hits("")
        keys = [key for key in client.scan_iter(count=1000) if not key.startswith(b"_kombu")]
        queued = client.llen(QUEUE) + client.hlen("unacked")
        if keys:
            client.delete(*keys)
        one.detail = f"{queued} messages"


@kind("hints doubled and shuffled", 3)
def _(site: Site, rng: random.Random, one: Strike) -> None:
    with site.broker_lock, site.broker_client() as client:
        one.hits("")
        taking = client.pipeline(transaction=True)
        queued, unacked, _ = taking.lrange(QUEUE, 0, -1).hvals("unacked").delete(QUEUE).execute()
        delivered = [message for message in map(_message, unacked) if message]
        late = rng.sample(site.remembered, min(SENT_LATE, len(site.remembered)))
        sent = [*queued, *queued, *delivered, *late]
        rng.shuffle(sent)
        if sent:
            client.rpush(QUEUE, *sent)
        site.remembered = [*site.remembered, *queued, *delivered][-REMEMBERED:]
        one.detail = f"{len(queued) + len(delivered)} twice, {len(late)} of the past"


def _message(unacked: bytes) -> bytes:
    """The message in what kombu notes of a delivered one, ``[message, exchange, routing key]``."""
    with suppress(ValueError, IndexError):
        return json.dumps(json.loads(unacked)[0]).encode()
    return b""


@kind("broker connections cut")
def _(site: Site, rng: random.Random, one: Strike) -> None:
    with site.broker_lock, site.broker_client() as client:
        one.hits("")
        with suppress(redis.ConnectionError):
            killed = sum(client.client_kill_filter(_type=which) for which in ("normal", "pubsub"))
            one.detail = f"{killed}"
