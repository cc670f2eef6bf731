"""A producer: a process that adds and signals operations, chunk by chunk, until it gets SIGTERM.

It is as careful as a producer has to be: what was acknowledged is never sent again, what was not answered or refused is
sent again under the same id. A chunk that is wholly acknowledged is one line of its ledger; one that was killed begins
the chunk it was in anew.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from smqueue.demo.plan import PlannedSignal
from smqueue.errors import SmqueueError, StoreRefused, StoreUnavailable, error_text
from tests.faults.chaos.application import executor
from tests.faults.chaos.load import Fed, Load, by_turns

PAUSE_S = 0.02
"""Between two attempts."""


class Producer:
    """Feeds chunks.

    Args:
        load: What.
        number: Whose chunks.
        ledger: Where it notes chunks that are acknowledged.
        ahead: How many operations may be active when another chunk is added.
    """

    def __init__(self, load: Load, number: int, ledger: Path, ahead: int) -> None:
        self._load, self._number, self._ledger, self._ahead = load, number, ledger, ahead
        self._stopping = threading.Event()
        self._said = Counter[str]()
        self._odd: list[str] = []

    def stop(self, *_: object) -> None:
        """Finish the chunk, then end."""
        self._stopping.set()

    def run(self) -> None:
        """Feed until stopped; the first chunk in any case, for one that was killed may have begun it."""
        number = first = len(read_ledger(self._ledger))
        while number == first or not self._stopping.is_set():
            if self._room():
                self._feed(self._load.chunk(self._number, number))
                self._note(number)
                number += 1

    def _feed(self, chunk: list[Fed]) -> None:
        for fed in chunk:
            for it in fed.early:
                self._signal(fed.operation_id, it)
        self._acknowledged(lambda: executor.add_state_machines([fed.machine for fed in chunk], exist_ok=True))
        for op, it in by_turns(chunk):
            self._signal(op, it)

    def _signal(self, op: str, it: PlannedSignal) -> None:
        self._acknowledged(lambda: executor.signal(op, it.name, it.payload, module=it.module, id=it.id))
        self._said["signals"] += 1

    def _acknowledged(self, send: Callable[[], object]) -> None:
        while True:
            try:
                send()
            except StoreUnavailable:
                self._said["unanswered"] += 1
            except StoreRefused:
                self._said["refused"] += 1
            except SmqueueError as error:  # an answer, and final
                self._odd.append(error_text(error))
                return
            else:
                return
            threading.Event().wait(PAUSE_S)

    def _room(self) -> bool:
        try:
            keys = executor.deployment.all_keys()[0]
            if executor.deployment.driver.command("ZCARD", keys.operations) <= self._ahead:
                return True
        except (StoreUnavailable, StoreRefused):
            pass
        threading.Event().wait(PAUSE_S)
        return False

    def _note(self, number: int) -> None:
        with self._ledger.open("a") as file:
            file.write(json.dumps({"chunk": number, "said": self._said, "odd": self._odd}) + "\n")
        self._said, self._odd = Counter(), []


def read_ledger(path: Path) -> list[dict[str, object]]:
    """The chunks that a producer noted."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    """Run; the arguments are in the environment, as those of a worker."""
    given = json.loads(os.environ["CHAOS_PRODUCER"])
    load = Load(given["seed"], Path(given["cases"]))
    producer = Producer(load, given["number"], Path(given["ledger"]), given["ahead"])
    signal.signal(signal.SIGTERM, producer.stop)
    producer.run()


if __name__ == "__main__":
    sys.exit(main())
