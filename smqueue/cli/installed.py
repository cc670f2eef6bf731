"""The target of ``celery -A … machines …``: an executor that was built on an application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from smqueue.cli.target import Target, importing
from smqueue.executor import Executor


@dataclass(frozen=True)
class Installed(Target):
    """An executor of an application; its namespace need not be given when there is one."""

    application: Any = None

    @property
    def has_modules(self) -> bool:
        """An executor has its modules."""
        return True

    def executor(self) -> Executor:
        """The executor.

        Raises:
            UsageError: There is none, or there are several and nothing says which.
        """
        with importing(f"what the application {self.application.main or ''} imports"):
            self.application.loader.import_default_modules()  # as a worker does: executors may be built there
        engines: list[Any] = list(getattr(self.application, "smqueue_engines", ()))
        if not engines:
            raise click.UsageError(
                "no executor was built on this application: -A of celery names a module in which "
                "ExecutorBuilder().build(app) is called, or one that imports it"
            )
        names: list[str] = sorted({engine.namespace for engine in engines})
        known = f"the executors of this application have {', '.join(names)}"
        if self.namespace is None and len(names) > 1:
            raise click.UsageError(f"{known}: give one of them as --namespace")
        if self.namespace is not None and self.namespace not in names:
            raise click.UsageError(f"there is no namespace {self.namespace}: {known}")
        return self.application.smqueue_engines.get(self.namespace).executor
