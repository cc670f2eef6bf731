"""A cluster for each test: one Redis for messages, results and state, two Celery workers, and a third on demand.

pytest-celery's own fixtures, on a Docker engine where one answers, else on local processes. The outputs of all
containers go into the report of a test that fails.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from celery import Celery
from docker.errors import DockerException
from pytest_celery import (
    DEFAULT_WORKER_CONTAINER_TIMEOUT,
    DEFAULT_WORKER_VOLUME,
    CeleryTestBroker,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RedisTestBroker,
)
from pytest_docker_tools import build, container, fxtr
from pytest_docker_tools.wrappers import container as wrapped

from tests.cluster.local_docker import LocalDocker

ROOT = Path(__file__).parents[2]
NAMESPACE = "cluster"  # each test has a server of its own

_LOCAL = pytest.StashKey[LocalDocker]()


@pytest.fixture(scope="session")
def docker_client(pytestconfig: pytest.Config) -> Iterator[Any]:
    """The client of the Docker engine, or what stands in for it."""
    try:
        client = docker.from_env(timeout=60)
        client.ping()
    except DockerException:
        local = pytestconfig.stash[_LOCAL] = LocalDocker()
        try:
            with pytest.MonkeyPatch.context() as patch:
                # Or, with the tests themselves in a container, it would look for the others on a Docker network.
                patch.setattr(wrapped, "tests_inside_container", lambda: False)
                yield local
        finally:
            local.close()
    else:
        yield client
        client.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the containers' outputs to the report of a failure; a Docker engine's are added by pytest-docker-tools."""
    report = yield
    if report.failed and (local := item.config.stash.get(_LOCAL, None)):
        for one in local.containers.list():
            report.sections.append((f"{one.name} ({one.status}): {' '.join(one.command)}", one.logs().decode()))
    return report


# --- Redis ---


@pytest.fixture
def celery_broker(celery_redis_broker: RedisTestBroker) -> RedisTestBroker:
    """Redis alone, in place of each broker that pytest-celery knows."""
    return celery_redis_broker


@pytest.fixture
def celery_backend_cluster() -> None:
    """None of its own: results go to the broker's Redis."""


@pytest.fixture
def celery_backend_cluster_config(celery_broker_cluster_config: dict[str, Any]) -> dict[str, Any]:
    """Results go to the broker's Redis."""
    return celery_broker_cluster_config


@pytest.fixture
def redis_url(celery_broker: CeleryTestBroker) -> str:
    """The test's Redis, as the test reaches it."""
    url: str = celery_broker.config()["host_url"]
    return url


# --- workers ---

# pytest-celery's image has neither smqueue nor a Python that is new enough.
celery_base_worker_image = build(  # pyright: ignore[reportCallIssue]  its fixture fills in the rest
    path=str(ROOT), dockerfile=str(Path(__file__).with_name("Dockerfile")), tag="smqueue-tests/worker:latest"
)


@pytest.fixture
def default_worker_command(default_worker_container_cls: type[CeleryWorkerContainer]) -> list[str]:
    """One process for tasks in each worker: the workers are what there are several of."""
    return default_worker_container_cls.command("--concurrency", "1")


@pytest.fixture
def default_worker_env(default_worker_env: dict[str, str]) -> dict[str, str]:
    """State goes to the broker's Redis too."""
    return default_worker_env | {"SMQUEUE_URL": default_worker_env["CELERY_BROKER_URL"], "SMQUEUE_NAMESPACE": NAMESPACE}


def worker_container(env: str = "default_worker_env") -> Any:
    """A fixture: the container of one more worker, with the environment of the fixture named."""
    return container(  # pyright: ignore[reportCallIssue]  its fixture fills in the rest
        image="{celery_base_worker_image.id}",
        ports=fxtr("default_worker_ports"),
        environment=fxtr(env),
        network="{default_pytest_celery_network.name}",
        volumes={"{default_worker_volume.name}": DEFAULT_WORKER_VOLUME},
        wrapper_class=CeleryWorkerContainer,
        timeout=DEFAULT_WORKER_CONTAINER_TIMEOUT,
        command=fxtr("default_worker_command"),
    )


second_worker_container = worker_container()
third_worker_container = worker_container()


@pytest.fixture
def celery_worker_cluster(
    celery_worker: CeleryTestWorker, second_worker_container: CeleryWorkerContainer, default_worker_app: Celery
) -> Iterator[CeleryWorkerCluster]:
    """Two workers."""
    cluster = CeleryWorkerCluster(celery_worker, CeleryTestWorker(second_worker_container, app=default_worker_app))
    yield cluster
    cluster.teardown()


@pytest.fixture
def third_worker(third_worker_container: CeleryWorkerContainer, default_worker_app: Celery) -> CeleryTestWorker:
    """One more, ready: for ``request.getfixturevalue`` in the middle of a test."""
    return CeleryTestWorker(third_worker_container, app=default_worker_app)
