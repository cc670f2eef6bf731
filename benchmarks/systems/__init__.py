"""The systems that do the same work: ours and its peers."""

from __future__ import annotations

from benchmarks.systems.peers_elsewhere import DbosPostgres, DbosSqlite, Temporal
from benchmarks.systems.peers_on_redis import Bullmq, CeleryChain, CeleryCounted, CeleryGroup, Docket, Harel
from benchmarks.systems.system import System

PEERS: tuple[type[System], ...] = (
    Bullmq, Docket, Harel, CeleryChain, CeleryGroup, CeleryCounted, DbosSqlite, DbosPostgres, Temporal,
)  # fmt: skip
