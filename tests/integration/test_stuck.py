"""Ten ways in which an operation gets stuck: whoever is called at night is told which, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from smqueue.cli.commands import smqueue
from smqueue.embedded import EmbeddedServer
from tests.stuck import SITUATIONS, Stuck, stuck
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def situations(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stuck]]:
    """The ten of them."""
    with stuck(server, tmp_path_factory.mktemp("stuck"), "stuck") as found:
        yield found


@pytest.mark.parametrize("name", SITUATIONS)
def test_why_names_the_cause(situations: dict[str, Stuck], name: str) -> None:
    """The command says what holds an operation up; its diagnosis has that cause, by kind, and what to do about it."""
    one = situations[name]

    def named() -> bool:
        return one.cause in {cause.kind for cause in one.shop.executor.diagnose(one.op).causes}

    wait_until(named, f"{one.op} is diagnosed as {one.cause}")
    (found,) = [cause for cause in one.shop.executor.diagnose(one.op).causes if cause.kind == one.cause]
    assert found.remedy
    options = ["--url", one.shop.url, "--namespace", one.shop.namespace]
    said = CliRunner().invoke(smqueue, ["why", one.op, *options])
    assert said.exit_code == 0, said.output
    assert re.search(one.says, said.output), said.output


def test_what_is_well_has_no_cause(situations: dict[str, Stuck]) -> None:
    """An operation that has finished, or that nothing is known of, is not said to be held up."""
    executor = situations["no worker"].shop.executor
    assert executor.diagnose("nobody").causes == ()
