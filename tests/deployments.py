"""Real deployments on loopback, as small as can be: a cluster of three, and a primary with a replica and sentinels.

Each server is a child that ends with the test's process, however that ends; nothing else is ever signalled.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import redis

from smqueue.processes import Child
from smqueue.server_binary import find_binary
from tests.waiting import wait_until

HOST = "127.0.0.1"
SLOTS = 16_384
READY_S = 60
"""How long anything here may take on a slow machine, in seconds."""


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, outside of the range from which the system gives them away."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind((HOST, port := random.randrange(12_000, 32_000)))
                found.append(port)
    return found


def client_of(url: str) -> Any:
    """A client of redis-py for a URL as smqueue takes it; keys and values are bytes."""
    parts = urlsplit(url)
    if not parts.scheme.endswith(("+cluster", "+sentinel")):
        return redis.Redis.from_url(url, socket_timeout=10)
    host, _, port = parts.netloc.split(",")[-1].partition(":")
    if parts.scheme.endswith("+cluster"):
        return redis.RedisCluster(host=host, port=int(port), socket_timeout=10)
    return redis.Sentinel([(host, int(port))], socket_timeout=10).master_for(parts.path.strip("/"), socket_timeout=10)


class Node:
    """One server process, with a directory of its own.

    Args:
        directory: It is made.
        port: Where it listens, on loopback.
        settings: More of its configuration.
        sentinel: Whether it is a sentinel.
    """

    def __init__(self, directory: Path, port: int, settings: Mapping[str, str], *, sentinel: bool = False) -> None:
        self.port, self._directory = port, directory
        directory.mkdir(parents=True)
        lines = {"bind": HOST, "port": str(port), "dir": str(directory), "save": '""', **settings}
        configuration = directory / "server.conf"
        configuration.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        command = [str(find_binary().path), str(configuration), *(["--sentinel"] if sentinel else [])]
        self._child = Child(f"server {port}", command, output=directory / "server.log")
        self.client: Any = redis.Redis(host=HOST, port=port, socket_timeout=10)

    @property
    def address(self) -> str:
        """Host and port, as in a URL."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """Of the server itself."""
        return self._child.pid

    @property
    def log(self) -> str:
        """What it has said."""
        return (self._directory / "server.log").read_text(errors="replace")

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        self._child.start()
        wait_until(self._answers, f"server {self.port} to answer", READY_S)
        return self

    def kill(self) -> None:
        """SIGKILL, also when it is paused."""
        self._child.kill()
        self.client.close()

    def pause(self) -> None:
        """SIGSTOP: it neither answers nor hangs up."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after ``pause``."""
        os.kill(self.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        if not self._child.alive:
            raise AssertionError(f"the server ended: {self.log[-2000:]}")
        try:
            return self.client.info("server")["process_id"] == self.pid
        except redis.RedisError:  # not yet, or loading
            return False


class _Deployment:
    """Several servers, which all end with the block, also when it fails."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="smq-"))
        self._started: list[Node] = []

    def __exit__(self, *_: object) -> None:
        for node in self._started:
            node.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self, name: str, port: int, settings: Mapping[str, str], *, sentinel: bool = False) -> Node:
        node = Node(self._directory / name, port, settings, sentinel=sentinel)
        self._started.append(node)
        return node.start()


class ValkeyCluster(_Deployment):
    """A cluster of three nodes without replicas, each with a third of the slots.

    A node that is away takes its slots with it, and no others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []

    @property
    def url(self) -> str:
        """For smqueue."""
        return "redis+cluster://" + ",".join(node.address for node in self.nodes)

    def __enter__(self) -> Self:
        try:
            self._form()
        except BaseException:
            self.__exit__()
            raise
        return self

    def owner(self, key: str) -> Node:
        """The node that has the slot of a key."""
        slot = self.slot(key)
        return next(node for node in self.nodes if any(a <= slot <= b for a, b in self._own_slots(node)))

    def slot(self, key: str) -> int:
        """The slot of a key."""
        return int(self.nodes[0].client.execute_command("CLUSTER", "KEYSLOT", key))

    def begin_move(self, slot: int, source: Node, target: Node) -> None:
        """From here on the keys of a slot may be at either node, until ``end_move``."""
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))

    def move_keys(self, slot: int, source: Node, target: Node, count: int = 1_000_000) -> int:
        """Move up to ``count`` keys of the slot, one by one; returns how many."""
        keys = source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, count)
        for key in keys:
            source.client.execute_command("MIGRATE", HOST, target.port, key, 0, 10_000)
        return len(keys)

    def end_move(self, slot: int, source: Node, target: Node) -> None:
        """The slot is the target's; whoever asks another node is told so."""
        while self.move_keys(slot, source, target):
            pass
        for node in (target, source, *self.nodes):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self._id(target))

    def move(self, key: str) -> Node:
        """Move the slot of a key to another node; returns that."""
        slot, source = self.slot(key), self.owner(key)
        target = next(node for node in self.nodes if node is not source)
        self.begin_move(slot, source, target)
        self.end_move(slot, source, target)
        return target

    def restart(self, node: Node) -> None:
        """Start a killed node, with its data, and wait until it serves its slots again."""
        node.start()
        wait_until(lambda: all(map(self._well, self.nodes)), "the cluster to be whole again", READY_S)

    def _form(self) -> None:
        ports = free_ports(6)
        for index in range(3):
            settings = {
                "cluster-enabled": "yes", "cluster-config-file": "nodes.conf", "cluster-port": str(ports[3 + index]),
                "cluster-node-timeout": "15000", "cluster-require-full-coverage": "no", "appendonly": "yes",
                "appendfsync": "always",
            }  # fmt: skip
            self.nodes.append(self._start(f"node{index}", ports[index], settings))
        for index, node in enumerate(self.nodes):
            first, last = index * SLOTS // 3, (index + 1) * SLOTS // 3 - 1
            node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in self.nodes[1:]:
            node.client.execute_command("CLUSTER", "MEET", HOST, self.nodes[0].port, ports[3])
        wait_until(lambda: all(map(self._well, self.nodes)), "the cluster to be formed", READY_S)

    def _well(self, node: Node) -> bool:
        info = _text(node.client.execute_command("CLUSTER", "INFO")).split()
        return {"cluster_state:ok", f"cluster_slots_ok:{SLOTS}", "cluster_known_nodes:3"} <= set(info)

    def _id(self, node: Node) -> str:
        return _text(node.client.execute_command("CLUSTER", "MYID"))

    def _own_slots(self, node: Node) -> list[tuple[int, int]]:
        lines = _text(node.client.execute_command("CLUSTER", "NODES")).splitlines()
        (mine,) = [line.split()[8:] for line in lines if "myself" in line.split()[2]]
        spans = [span.split("-") for span in mine if not span.startswith("[")]  # in brackets: one on the move
        return [(int(span[0]), int(span[-1])) for span in spans]


def _text(answer: bytes | str) -> str:
    return answer.decode() if isinstance(answer, bytes) else answer


class SentinelDeployment(_Deployment):
    """A primary, replicas of it, and sentinels that agree quickly.

    Args:
        replicas: How many.
        sentinels: How many; a majority of them decides.
        settings: More of the servers' configuration.
    """

    SERVICE = "state"

    def __init__(self, replicas: int = 1, sentinels: int = 1, settings: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._replicas, self._sentinels, self._settings = replicas, sentinels, dict(settings or {})
        self.servers: list[Node] = []
        self.sentinels: list[Node] = []

    @property
    def url(self) -> str:
        """For smqueue."""
        return f"redis+sentinel://{','.join(node.address for node in self.sentinels)}/{self.SERVICE}?db=0"

    @property
    def primary(self) -> Node:
        """The server that the sentinels name."""
        _, port = self.sentinels[0].client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)
        return next(node for node in self.servers if node.port == int(port))

    def __enter__(self) -> Self:
        try:
            self._form()
        except BaseException:
            self.__exit__()
            raise
        return self

    def promote(self) -> Node:
        """Let a replica take over while the primary lives, which becomes its replica; returns the new primary."""
        before = self.primary
        wait_until(self._asked_to_promote, "the sentinels to begin", READY_S)
        return self._promoted(before)

    def kill_primary(self) -> Node:
        """SIGKILL the primary, and wait until a replica has taken over; returns the killed one."""
        before = self.primary
        before.kill()
        self._promoted(before)
        return before

    def cut_off(self) -> None:
        """From here on the primary's writes reach no replica, though both live."""
        primary = self.primary.client
        primary.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")

        def gone() -> bool:  # one that was just about to be connected is missed by the first kill
            primary.execute_command("CLIENT", "KILL", "TYPE", "REPLICA")
            return bool(primary.info("replication")["connected_slaves"] == 0)

        wait_until(gone, "no replica to be connected", READY_S)

    def join(self) -> None:
        """The replicas get all that they have missed."""
        primary = self.primary
        # Not SYNC: a replica that falls back to it, refused just before, would never confirm anything.
        primary.client.execute_command("ACL", "SETUSER", "default", "+psync")
        wait_until(lambda: self._confirmed(primary), "the replicas to confirm what they have", READY_S)

    def restart(self, node: Node) -> None:
        """Start a killed server, and wait until it is a replica of the primary that took over."""
        node.start()
        wait_until(lambda: self._follows(node), "the restarted server to follow the primary", READY_S)

    def _form(self) -> None:
        ports = free_ports(1 + self._replicas + self._sentinels)
        settings = {"appendonly": "yes", "appendfsync": "always", "repl-diskless-sync-delay": "0", **self._settings}
        primary = self._start("primary", ports[0], settings)
        self.servers.append(primary)
        for index, port in enumerate(ports[1 : 1 + self._replicas]):
            follow = {"replicaof": f"{HOST} {primary.port}"}
            self.servers.append(self._start(f"replica{index}", port, {**settings, **follow}))
        for node in self.servers[1:]:
            wait_until(lambda node=node: self._follows(node, primary), "the replica to follow", READY_S)
        wait_until(lambda: self._confirmed(primary), "the replicas to confirm what they have", READY_S)
        quorum = self._sentinels // 2 + 1
        watch = {
            "sentinel": f"monitor {self.SERVICE} {HOST} {primary.port} {quorum}\n"
            f"sentinel down-after-milliseconds {self.SERVICE} 2000\n"
            f"sentinel failover-timeout {self.SERVICE} 5000"
        }
        for index, port in enumerate(ports[1 + self._replicas :]):
            self.sentinels.append(self._start(f"sentinel{index}", port, watch, sentinel=True))
        wait_until(self._known, "the sentinels to know each other and the replicas", READY_S)

    def _known(self) -> bool:
        wanted = {"num-slaves": self._replicas, "num-other-sentinels": self._sentinels - 1}
        states = [sentinel.client.sentinel_master(self.SERVICE) for sentinel in self.sentinels]
        return all(int(state[name]) == count for state in states for name, count in wanted.items())

    def _asked_to_promote(self) -> bool:
        try:
            self.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", self.SERVICE)
        except redis.ResponseError:  # no replica that it holds to be good enough just now
            return False
        return True

    def _promoted(self, before: Node) -> Node:
        wait_until(lambda: self.primary is not before, "a replica to take over", READY_S)
        return self.primary

    def _confirmed(self, primary: Node) -> bool:
        """Whether all replicas have what is written now: one whose link is up may still be ignored for a while."""
        _, count = primary.client.pipeline(transaction=False).set("confirmed", 1).wait(self._replicas, 1_000).execute()
        return count >= self._replicas

    def _follows(self, node: Node, primary: Node | None = None) -> bool:
        info = node.client.info("replication")
        port = (primary or self.primary).port
        return info["role"] == "slave" and info["master_port"] == port and info["master_link_status"] == "up"
