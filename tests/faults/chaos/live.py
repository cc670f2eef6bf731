"""The audit beside running workers, again and again: it must not cry wolf while everything moves and breaks."""

from __future__ import annotations

import itertools
import threading
from types import TracebackType
from typing import Self

from smqueue.audit import audit
from smqueue.errors import StoreRefused, StoreUnavailable
from tests.faults.chaos.application import application, executor_on
from tests.faults.chaos.site import Site

EVERY_S = 5.0
OPERATIONS = 200


class LiveAudits:
    """Audits some of the active operations every few seconds, on a thread of its own.

    Args:
        site: Whose state.
    """

    def __init__(self, site: Site) -> None:
        self._executor = executor_on(application(site.broker.broker_url), site.state.url)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-audits", daemon=True)
        self.audited = 0
        """How many operations were looked at; one may have been so several times."""
        self.problems: list[str] = []
        """What was found."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                some = list(itertools.islice(self._executor.get_active_operations(), OPERATIONS))
                found = audit(self._executor.deployment, self._executor.instances, operations=some)
            except (StoreUnavailable, StoreRefused):
                continue
            except Exception as error:  # a fault of the audit itself is a finding, too
                self.problems.append(f"{type(error).__name__}: {error}")
                continue
            self.audited += len(some)
            self.problems += [str(problem) for problem in found.problems]
