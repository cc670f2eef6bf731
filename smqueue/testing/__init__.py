"""For the tests of those who use smqueue.

``LocalExecutor`` is an executor in memory with virtual time; ``FakeTransaction`` is for calling handlers as the plain
functions that they are; ``explore`` tries every order, duplicate and crash. They need Lua, which comes with
``pip install 'smqueue[testing]'``.

The fixture ``smqueue_server``, a real server, comes by itself once smqueue is installed.
"""

from smqueue.errors import AmbiguousTrigger, NeverIdle, NotArmed, NothingHappens
from smqueue.testing.engine import SentTask
from smqueue.testing.executor import LocalExecutor
from smqueue.testing.exploring import Counterexample, Explored, explore
from smqueue.testing.transaction import FakeTransaction, SentSignal
from smqueue.testing.world import World

__all__ = [
    "AmbiguousTrigger",
    "Counterexample",
    "Explored",
    "FakeTransaction",
    "LocalExecutor",
    "NeverIdle",
    "NotArmed",
    "NothingHappens",
    "SentSignal",
    "SentTask",
    "World",
    "explore",
]
