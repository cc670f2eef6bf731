"""Every key of a namespace: its name, its type and what it holds.

All keys of one shard share the hash tag ``{namespace.shard}``, so that a shard is one slot of a cluster. Ids are
percent-encoded into keys: no id can break out of its key or tag. Times in records are µs since the epoch, scores of
schedules are ms, both by Redis's clock.

===============================  ======  =============================================================================
``active:<op>``                  hash    ``module type state`` → ``[machine, step, at µs, version, made, lone, seal]``
``inactive:<op>``                hash    the same field → JSON object: the above, exited, visits, who won, by how much
``history:<op>``                 list    one JSON entry a step, in commit order; its index is the operation's sequence
``machine:<record>``             string  ``[guard, arming, op, field, {trigger: what it waits for}, 1 when its state
                                         has a cancel handler, the span that has entered its state, if traced]``; the
                                         guard is the id of the last commit. Written by EXEC only; what commits watch
``race:<record>``                hash    what the race has brought so far: outcome (and the span that has brought it, if
                                         traced), claims, attempts, errors. Absent while a machine just waits
``schedule``                     zset    ``<record>:<arming>`` the race, ``…:<trigger>`` its code, ``~…`` other → due
``hosted``                       zset    the same for coroutines and channels, which live on a worker's event loop
``waiting:<op>:<mod>:<signal>``  zset    ``<record>:<arming>:<trigger>`` → since when it waits, µs: longest first. The
                                         machine of an operation that has not begun is not in it
``inbox:<op>:<mod>:<signal>``    list    early signals, oldest first: JSON with id, time, payload, span if traced
``seen:<op>``                    zset    ids of signals → when, ms; bounded
``marker:<attempt>``             string  what a commit without a record answered, for a caller who lost the reply
``control:<op>`` and             string  ``paused <since, ms> <reason>`` or ``cancelling <since, ms> <how> <reason>``;
``control:module:<mod>[:<type>]``        ``how`` adds up 1 for children, 2 by force, 4 when those are begun;
                                         behind a colon, percent-encoded, what it says after that, if it is paused
``controls``                     zset    the controls that are paused, without ``control:`` → since when, ms
``held:<control>``               set     entries that fell due while that control was set
``quarantine``                   hash    record → JSON: why, since when
``watchers:<op>``                set     entries that want to look again after each commit of that operation
``operations``                   zset    operations with active machines → since when, ms
``finished``                     zset    operations without one → when to ask whether it may be forgotten, ms
``children:<op>``                set     operations that its transitions have started
``requests``                     list    what is still to be done outside of a commit: tasks to send, signals to pass
                                         on, calls of clients
``unsent``                       list    tasks that can never be sent, JSON with their error: for somebody to look at
``reply:<id>``                   list    the answer to a client's call
``updates``                      stream  the last updates of all operations, bounded
``moves``                        hash    ``module from to how`` → how often, counted by commits (``to!`` is terminal):
                                         what has come into a state less what has left it is how many are in it
``early``                        zset    ``op module signal`` → when one was last kept early, ms: the last 1,000
``tallies``                      hash    what workers have counted and measured: ``tally[:bucket] labels`` → how many
                                         (shard 0); statistics, added up every few seconds by each process
``workers``                      zset    JSON of a worker of the last day → when it noted itself last, ms (shard 0)
``hint``                         string  set while a transition hint is under way
``watch``                        string  the process that looks when things fall due, for a second
``roused``                       string  set while it has been rung for, and has not looked since
``watched``                      string  set while Flower or another consumer of Celery's events looks on
``meta``                         hash    number of shards, format
``data:<mod>:<key>``             any     what handlers write
===============================  ======  =============================================================================
"""

from __future__ import annotations

import binascii
import os
import re
from base64 import urlsafe_b64encode
from collections import deque
from functools import lru_cache
from hashlib import sha1
from secrets import token_bytes
from urllib.parse import quote, unquote

HOSTED_KINDS = frozenset({"wait", "channel"})


_plain = re.compile(r"[A-Za-z0-9_.~-]*\Z").match


@lru_cache(maxsize=8192)  # a transition asks some fifty times, for five
def encode(identifier: str) -> str:
    """An id as part of a key: everything but letters, digits and ``_.-~`` percent-encoded."""
    return identifier if _plain(identifier) else quote(identifier, safe="")


@lru_cache(maxsize=8192)
def decode(part: str) -> str:
    """The id that ``encode`` was given."""
    return unquote(part)


def new_id() -> str:
    """16 characters, 96 random bits: ids of commits, machines and attempts."""
    # Drawn for many at once: asking the system lets other threads run, and to get back from them takes longer than all
    # else that adding a machine asks of its thread.
    if not _drawn:
        raw = token_bytes(DRAWN * 12)
        letters = urlsafe_b64encode(raw).decode()  # 16 for each 12 bytes
        _drawn.extend([letters[at : at + 16] for at in range(0, len(letters), 16)])
    try:
        return _drawn.pop()
    except IndexError:  # other threads have taken them
        return new_id()


DRAWN = 256
_URLSAFE = bytes.maketrans(b"+/", b"-_")
_drawn = deque[str]()
os.register_at_fork(after_in_child=_drawn.clear)


@lru_cache(maxsize=4096)  # a transition asks some ten times for one or two
def digest(operation_id: str, field: str) -> str:
    """The id of a record: 20 characters, 120 bits, of operation, module and canonical state.

    SHA-1, which scripts have too (``record_id`` in ``_common.lua``).
    """
    raw = sha1(f"{encode(operation_id)}\n{field}".encode(), usedforsecurity=False).digest()
    return binascii.b2a_base64(raw[:15], newline=False).translate(_URLSAFE).decode()


def shard_of(operation_id: str, shards: int) -> int:
    """The shard that an operation lives in: CRC16 of its id, as a cluster computes slots."""
    return binascii.crc_hqx(operation_id.encode(), 0) % shards if shards > 1 else 0


class Keys:
    """The keys of one shard of a namespace."""

    def __init__(self, namespace: str, shard: int = 0) -> None:
        self.namespace, self.shard = namespace, shard
        self.tag = "{" + encode(namespace) + f".{shard}}}"
        p = self.prefix = self.tag + ":"
        self.schedule, self.hosted, self.operations = p + "schedule", p + "hosted", p + "operations"
        self.requests, self.updates, self.hint, self.watched = p + "requests", p + "updates", p + "hint", p + "watched"
        self.quarantine, self.finished, self.meta, self.wake = p + "quarantine", p + "finished", p + "meta", p + "wake"
        self.moves, self.early, self.workers = p + "moves", p + "early", p + "workers"
        self.controls, self.tallies = p + "controls", p + "tallies"
        self.unsent, self.bells, self.watch, self.roused = p + "unsent", p + "bells", p + "watch", p + "roused"
        self.machine_prefix, self.race_prefix, self.active_prefix = p + "machine:", p + "race:", p + "active:"

    def active(self, op: str) -> str:
        """Hash of the operation's active records."""
        return self.active_prefix + encode(op)

    def inactive(self, op: str) -> str:
        """Hash of the operation's inactive records."""
        return f"{self.prefix}inactive:{encode(op)}"

    def history(self, op: str) -> str:
        """List of the operation's steps."""
        return f"{self.prefix}history:{encode(op)}"

    def bell(self, op: str) -> str:
        """Sharded pub/sub channel: rings when the history has grown. A doorbell, not a message.

        ``bells`` rings with that of any operation.
        """
        return f"{self.prefix}bell:{encode(op)}"

    def machine(self, record: str) -> str:
        """String: guard, arming and armed triggers of a record."""
        return self.machine_prefix + record

    def race(self, record: str) -> str:
        """Hash: what the race of a record has brought so far."""
        return self.race_prefix + record

    def waiting(self, op: str, module: str, signal: str) -> str:
        """Zset of those that wait for a signal."""
        return f"{self.prefix}waiting:{encode(op)}:{encode(module)}:{encode(signal)}"

    def inbox(self, op: str, module: str, signal: str) -> str:
        """List of signals that nobody waited for."""
        return f"{self.prefix}inbox:{encode(op)}:{encode(module)}:{encode(signal)}"

    def seen(self, op: str) -> str:
        """Zset of the ids of signals."""
        return f"{self.prefix}seen:{encode(op)}"

    def marker(self, attempt: str) -> str:
        """String: the answer of a commit without a record."""
        return f"{self.prefix}marker:{encode(attempt)}"

    def reply(self, request: str) -> str:
        """List: the answer to a client's call."""
        return f"{self.prefix}reply:{encode(request)}"

    def control(self, op: str) -> str:
        """String: the operation is paused or being cancelled."""
        return f"{self.prefix}control:{encode(op)}"

    def control_module(self, module: str, type_name: str | None = None) -> str:
        """String: the module, or one state type of it, is paused.

        An operation cannot have this key by its id: its colon would be encoded.
        """
        return f"{self.prefix}control:module:{encode(module)}" + (f":{encode(type_name)}" if type_name else "")

    def controlled(self, control: str) -> str:
        """What a control (a key) is about, as ``controls`` names it: ``<op>`` or ``module:<mod>[:<type>]``."""
        return control.removeprefix(f"{self.prefix}control:")

    def held(self, control: str) -> str:
        """Set of entries that fell due while ``control`` (a key) was set."""
        return f"{self.prefix}held:{control.removeprefix(self.prefix)}"

    def watchers(self, op: str) -> str:
        """Set of entries that want to look after each commit of the operation."""
        return f"{self.prefix}watchers:{encode(op)}"

    def children(self, op: str) -> str:
        """Set of operations that its transitions have started."""
        return f"{self.prefix}children:{encode(op)}"

    def data(self, module: str, key: str) -> str:
        """A handler's key."""
        return f"{self.prefix}data:{encode(module)}:{encode(key)}"


def schedule_of(keys: Keys, kind: str) -> str:
    """The zset that holds the entries of triggers of that kind."""
    return keys.hosted if kind in HOSTED_KINDS else keys.schedule
