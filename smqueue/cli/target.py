"""Which deployment a command is about, and what it may know of it: an executor with modules, or one without any."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from smqueue.deployment import DEFAULT_NAMESPACE, Deployment, Settings
from smqueue.errors import DefinitionError, SmqueueError, WrongShardCount
from smqueue.executor import Executor
from smqueue.instances import Instances
from smqueue.selection import FORMAT, VARIABLE
from smqueue.worker.application import APP_VARIABLE, default_executor, load_executor
from smqueue.worker.settings import history_chain

INSTALLED = "smqueue.installed"
"""In the context of a command: makes the target of a namespace, where no option but that says which."""

F = TypeVar("F", bound=Callable[..., Any])


class Silent:
    """An ``Outbound`` without a broker: what is due is found by a worker's pump, within a second."""

    def hint(self, namespace: str, shard: int) -> None:
        """Nothing."""

    def send_triggers(self, armed: Any) -> None:
        """Nothing: their entries stay due."""

    def send_task(self, name: str, args: Any, kwargs: Any, task_id: str, options: Any) -> None:  # noqa: ARG002
        """Leave the request to a worker."""
        raise ConnectionError("no broker")

    def armed(self, placed: Any, active: Any, arming: str) -> None:
        """Nothing."""

    def ended(self, placed: Any, active: Any, arming: str, armed: Mapping[str, Any], won: str | None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Target:
    """What the options, or else the environment, say of the deployment."""

    app: str | None
    url: str | None
    namespace: str | None
    modules: str | None

    @property
    def has_modules(self) -> bool:
        """Whether there is machine code to be had."""
        return bool(self.app or self.modules)

    def environment(self) -> dict[str, str]:
        """The same for a process that is to find the same deployment."""
        given = {
            "SMQUEUE_URL": self.url,
            "SMQUEUE_NAMESPACE": self.namespace,
            VARIABLE: None if self.app else self.modules,
            APP_VARIABLE: self.app,
        }
        return {name: value for name, value in given.items() if value}

    def executor(self) -> Executor:
        """An executor: with its modules where they are named, else with none, for what only reads or steers.

        Raises:
            UsageError: Nothing says where the deployment is.
            SmqueueError: What is named cannot be loaded, or is elsewhere.
        """
        os.environ.update(self.environment())
        if self.app:
            with importing(self.app):
                executor = load_executor(self.app)
            found = executor.deployment.settings
            for what, asked, has in (("url", self.url, found.url), ("namespace", self.namespace, found.namespace)):
                if asked and asked != has:
                    raise DefinitionError(
                        f"the executor has a {what} of its own ({has}), so that --{what} would do nothing: leave out "
                        f"{what}= of build() or smqueue_{what}, so that SMQUEUE_{what.upper()} counts",
                        self.app,
                    )
            return executor
        if not self.url:
            raise click.UsageError("where is it? Give -A package.module:executor, or --url, or set SMQUEUE_URL")
        try:
            return self._made(1)
        except WrongShardCount as known:  # the namespace knows, and nobody here has said otherwise
            return self._made(known.stored)

    def _made(self, shards: int) -> Executor:
        if self.modules:
            with importing(self.modules):
                executor = default_executor(self.modules, shards)
        else:
            settings = Settings(str(self.url), self.namespace or DEFAULT_NAMESPACE, shards)
            instances = Instances(shards=shards)
            instances.chain = history_chain(None)
            executor = Executor(Deployment(lambda: settings), lambda: instances, Silent())
        _ = executor.deployment.driver
        return executor

    def with_code(self, what: str) -> Executor:
        """The same for what cannot be done without modules.

        Raises:
            UsageError: None are named.
        """
        if not self.has_modules:
            raise click.UsageError(
                f"{what} needs the modules: give -A package.module:executor, or --modules {FORMAT}, or set {VARIABLE}"
            )
        return self.executor()


@contextmanager
def importing(what: str) -> Generator[None]:
    """Import a user's code: from the current directory too, and with its errors in one line that says where."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        yield
    except SmqueueError as error:
        cause = error.__cause__
        if isinstance(error, DefinitionError) and isinstance(cause, ImportError):
            raise DefinitionError(f"{error.what}{_place(cause)}", error.where) from None
        raise
    except SystemExit as error:
        raise DefinitionError(f"{what} cannot be loaded: it exits ({error.code})", what) from None
    except Exception as error:
        text = str(error) if isinstance(error, SyntaxError) else f"{type(error).__name__}: {error}{_place(error)}"
        raise DefinitionError(f"{what} cannot be loaded: {text}", what) from None


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    own = str(Path(__file__).parents[1]) + os.sep
    users = [frame for frame in users if not frame.filename.startswith(own)]
    return f" (at {users[-1].filename}:{users[-1].lineno})" if users else ""


def target_of(app: str | None, url: str | None, namespace: str | None, modules: str | None) -> Target:
    """A target of options and, where they do not say, the environment.

    Raises:
        UsageError: Two executors are named.
    """
    if app and modules:
        raise click.UsageError("give -A, whose executor has its modules, or --modules, not both")
    env = os.environ.get
    return Target(
        app,
        # An executor that is named has its own; the environment reaches it by itself.
        url or (None if app else env("SMQUEUE_URL") or None),
        namespace or (None if app else env("SMQUEUE_NAMESPACE") or None),
        modules or (None if app else env(VARIABLE) or None),
    )


def deployment_options(command: F) -> F:
    """The options that every command with a deployment has; the command gets a ``Target``."""

    @click.option("-A", "--app", metavar="MODULE:EXECUTOR", help="The executor: package.module:executor.")
    @click.option("--url", metavar="URL", help="Of the Redis that holds the state.  [env: SMQUEUE_URL]")
    @click.option("--namespace", metavar="NAME", help="Prefix of all keys.  [env: SMQUEUE_NAMESPACE; smqueue]")
    @click.option("--modules", metavar="LIST", help=f"package.module:object, separated by commas.  [env: {VARIABLE}]")
    @wraps(command)
    def wrapped(
        *args: Any,
        namespace: str | None,
        app: str | None = None,
        url: str | None = None,
        modules: str | None = None,
        **rest: Any,
    ) -> Any:
        installed: Callable[[str | None], Target] | None = click.get_current_context().meta.get(INSTALLED)
        target = installed(namespace) if installed else target_of(app, url, namespace, modules)
        return command(*args, target=target, **rest)

    return wrapped  # pyright: ignore[reportReturnType]
