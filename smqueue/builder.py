"""Putting an executor together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from celery import Celery

from smqueue.deployment import Deployment
from smqueue.errors import DefinitionError, InvalidInput
from smqueue.executor import Executor
from smqueue.instances import INBOX_LIMIT, PAYLOAD_LIMIT, Instance, Instances
from smqueue.modules import Module
from smqueue.places import here
from smqueue.secrets import SecretCodec, Secrets
from smqueue.states import check_name
from smqueue.worker.engine import Engine
from smqueue.worker.install import install
from smqueue.worker.outbound import CeleryOutbound
from smqueue.worker.settings import Given, check_durability, history_chain, settings_of, whole

M = TypeVar("M")


class ExecutorBuilder:
    """Collects module instances; ``build`` makes the executor."""

    def __init__(self) -> None:
        self._instances: list[Instance] = []
        self._secrets = Secrets()

    @overload
    def with_module(self, id: str, module: Module[None] | str, *, context: None = None) -> ExecutorBuilder: ...
    @overload
    def with_module(self, id: str, module: Module[M] | str, *, context: M | Callable[[], M]) -> ExecutorBuilder: ...
    def with_module(self, id: str, module: Module[Any] | str, *, context: Any = None) -> ExecutorBuilder:
        """Register a module under an id; one module may be registered under several.

        Args:
            id: Part of every record's identity; 1 to 256 bytes.
            module: The module; or ``"package.module:attribute"``, imported when a worker starts or at first use.
            context: What handlers and triggers get; or a function that makes it, called once per process.

        Raises:
            DuplicateModule: The id is taken; both places are named.
            InvalidInput: The id is empty or too long.
        """
        check_name("module id", id)
        if not isinstance(module, Module | str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput("module", f"expected a Module or its name, got {type(module).__name__}")
        if isinstance(module, str) and ":" not in module:
            raise InvalidInput("module", f"{module!r} is not of the form package.module:attribute")
        instance = Instance(id, module, context, here())
        probe = Instances()
        for known in (*self._instances, instance):
            probe.register(known)
        self._instances.append(instance)
        return self

    def with_secrets(self, codec: SecretCodec, *, stored_plain: bool = False) -> ExecutorBuilder:
        """Encrypt fields marked ``Secret`` before they leave the process; without this they are stored as they are.

        Every process of the namespace needs it, producers too: one without it would store plain text, and leaves what
        it cannot read to others.

        Args:
            codec: The shipped one is ``FernetCodec(keys)``.
            stored_plain: Machines were stored before there was a codec: states are looked for in plain text too, so
                that each is still known. This writes no plain text, but sends it, and a slow log may keep it.

        Raises:
            InvalidInput: It is no ``SecretCodec``.
            DefinitionError: There is one already; to rotate keys give several to one codec.
        """
        if not isinstance(codec, SecretCodec):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput("codec", f"expected a SecretCodec, got {type(codec).__name__}")
        if self._secrets.codec is not None:
            raise DefinitionError("with_secrets() was called twice: give all keys to one codec", here())
        self._secrets = Secrets(codec, stored_plain=stored_plain)
        return self

    def build(
        self,
        app: Celery,
        *,
        url: str | None = None,
        namespace: str | None = None,
        global_context: Callable[[str, str], Any] | None = None,
        durability: str | None = None,
    ) -> Executor:
        """Make the executor, and install its tasks and worker steps on ``app``; runs and connects nothing.

        Args:
            app: The user's Celery application; machines run in its workers.
            url: Of the Redis or Valkey that holds the state, independent of the broker; else ``smqueue_url`` of the
                Celery configuration, else ``SMQUEUE_URL``. One server: ``redis://[user:password@]host:port/db``,
                ``rediss://…`` with TLS, ``unix:///path?db=0``. Sentinels:
                ``redis+sentinel://[user:password@]host:port[,host:port…]/service?db=0``. A cluster:
                ``redis+cluster://[user:password@]host:port[,host:port…]``; both with ``rediss+…`` too.
            namespace: Else ``smqueue_namespace``, else ``SMQUEUE_NAMESPACE``, else ``smqueue``.
            global_context: Makes ``context.global_context`` for a module id and an operation id.
            durability: What an answer promises; else ``smqueue_durability``. ``None``: what the server's
                ``appendfsync`` gives. ``"fsync"``: it is on the server's disk, and a server that is not set so is
                refused with ``NotDurable``. ``"replica"``: it is on a replica too; while none confirms, calls raise
                ``NotReplicated``. ``docs/deployments.md`` has what each is worth.

        Raises:
            DefinitionError: There is no such durability.
        """
        check_durability(durability, "build")
        given = Given(url, namespace, durability)
        deployment = Deployment(lambda: settings_of(app, given))
        made: list[Instances] = []

        def instances() -> Instances:
            if not made:
                fresh = Instances(global_context, deployment.settings.shards)
                fresh.limit = whole(app, "smqueue_payload_limit", PAYLOAD_LIMIT)
                fresh.inbox_limit = whole(app, "smqueue_inbox_limit", INBOX_LIMIT)
                if (most := whole(app, "smqueue_max_active", 0)) > 0:
                    fresh.max_active = -(-most // deployment.settings.shards)  # each shard its share, rounded up
                fresh.secrets = self._secrets
                fresh.chain = history_chain(app)
                fresh.push = outbound.push
                for instance in self._instances:
                    fresh.register(instance)
                made.append(fresh)
            return made[0]

        outbound = CeleryOutbound(app, lambda: deployment.settings, instances)
        executor = Executor(deployment, instances, outbound)
        install(app, Engine(app, executor, outbound))
        return executor
