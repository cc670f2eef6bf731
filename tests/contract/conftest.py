"""One deployment with one worker for all tests of a backend in a run, told apart by operation ids."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.contract.deployed import BACKENDS, Deployed, Deployments
from tests.contract.versions import newer, older

__all__ = ["newer", "older"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--backend NAME`` runs the suite on one deployment."""
    parser.addoption("--backend", choices=BACKENDS, help="run the contract suite on this deployment only")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", "real(reason): has no meaning in memory")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses ``shop`` on each backend."""
    if "shop" in metafunc.fixturenames:
        metafunc.parametrize("shop", BACKENDS, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for, and what has no meaning in memory."""
    asked = config.getoption("--backend", default=None)

    def left_out(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        backend = callspec.params.get("shop") if callspec is not None else None
        if backend not in BACKENDS:
            return False
        return asked not in (None, backend) or (backend == "memory" and item.get_closest_marker("real") is not None)

    config.hook.pytest_deselected(items=[item for item in items if left_out(item)])
    items[:] = [item for item in items if not left_out(item)]


@pytest.fixture(scope="session")
def deployments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployments]:
    """Shared by the processes of pytest-xdist, whose directories are in one."""
    own = tmp_path_factory.getbasetemp()
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "contract"
    directory.mkdir(exist_ok=True)
    found = Deployments(directory)
    yield found
    found.close()


@pytest.fixture(scope="session")
def shop(request: pytest.FixtureRequest, deployments: Deployments) -> Deployed:
    """A deployment and its worker."""
    return deployments.get(request.param)


@pytest.fixture
def op(request: pytest.FixtureRequest) -> str:
    """The id of an operation that no other test has."""
    return f"{re.sub('[^a-z_]+', '-', request.node.originalname)}-{os.urandom(4).hex()}"
