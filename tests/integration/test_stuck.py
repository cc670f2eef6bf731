"""Ten ways in which an operation gets stuck, and two more: whoever is called at night is told which, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from smqueue.cli.commands import smqueue
from smqueue.embedded import EmbeddedServer
from tests.flower.site import CELERY, Site, flower
from tests.stuck import APP, SITUATIONS, TEN, Stuck, sites, stuck
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def situations(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stuck]]:
    """All of them."""
    with stuck(server, tmp_path_factory.mktemp("stuck"), "stuck") as found:
        yield found


@pytest.fixture(scope="module")
def site(situations: dict[str, Stuck]) -> Iterator[Site]:
    """One Flower for all their namespaces."""
    command = tuple(APP if part == "tests.apps.shop" else part for part in CELERY)
    with flower(situations[TEN[0]].shop, command=command, env=sites(situations)) as found:
        yield found


def read(site: Site, path: str, one: Stuck) -> str:
    """What is to be read on a page."""
    answer = site.get(f"{path}{'&' if '?' in path else '?'}namespace={one.shop.namespace}")
    assert answer.status == 200, answer.text
    text = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", answer.text, flags=re.DOTALL)
    return unescape(" ".join(text.split()))


def test_there_are_ten() -> None:
    """And none is left out."""
    assert (len(TEN), set(TEN) <= set(SITUATIONS)) == (10, True)


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


@pytest.mark.parametrize("name", SITUATIONS)
def test_flower_names_the_cause(situations: dict[str, Stuck], site: Site, name: str) -> None:
    """The operation's page says the same as the command; the page of all machines too, where more than one is held up
    by it, or where it finds the machine."""
    one = situations[name]
    page = read(site, f"/machines/op/{quote(one.op)}", one)
    assert re.search(one.says, page), page
    if one.glance:
        path = f"/machines?operation={quote(one.asked)}" if one.asked else "/machines"
        wait_until(lambda: re.search(one.glance, read(site, path, one)), f"the machines page says {one.glance}")


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_metric_names_the_cause(situations: dict[str, Stuck], site: Site, name: str) -> None:
    """One of those that the same Flower serves is above zero because of it."""
    one = situations[name]
    wanted = {"namespace": one.shop.namespace, **one.labels}

    def counted() -> bool:
        families = text_string_to_metric_families(site.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == one.metric]
        return any(sample.value > 0 for sample in samples if wanted.items() <= sample.labels.items())

    wait_until(counted, f"{one.metric} {wanted} is counted")


def test_what_is_well_has_no_cause(situations: dict[str, Stuck]) -> None:
    """An operation that has finished, or that nothing is known of, is not said to be held up."""
    executor = situations["no worker"].shop.executor
    assert executor.diagnose("nobody").causes == ()
