"""The alert rules and the dashboard that are shipped: they can be parsed, and speak of metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser as promql
import pytest
import yaml

from smqueue.metrics import alerts, dashboard
from smqueue.metrics.names import KINDS, METRICS, Metric
from tests.docs.pages import ROOT

RULES: list[dict[str, Any]] = yaml.safe_load(alerts())["groups"][0]["rules"]
BOARD: dict[str, Any] = json.loads(dashboard())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
TABLE = {metric.name: metric for metric in METRICS}


def metric_of(name: str) -> Metric:
    """The metric that a series belongs to."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    found = TABLE.get(name) or TABLE[base]
    assert found.type != "histogram" or base != name, f"{name} is a histogram: ask for its buckets, sum or count"
    return found


def labels_of(metric: Metric) -> set[str]:
    """All labels of its series."""
    return {"namespace", *metric.labels, *(["le"] if metric.type == "histogram" else [])}


def parts(expr: Any) -> Iterator[Any]:
    """A query and all queries in it."""
    yield expr
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        inner = getattr(expr, name, None)
        if isinstance(inner, promql.Expr) or type(inner).__name__.endswith("Selector"):
            yield from parts(inner)
    for inner in getattr(expr, "args", None) or ():
        yield from parts(inner)


def check(query: str) -> set[str]:
    """Parse a query; every metric and label in it is one that there is. Returns the labels of what it asks for."""
    text = query.replace("$__rate_interval", "5m").replace("$namespace", "x").replace("$module", "y")
    known: set[str] = set()
    grouped: set[str] = set()
    for part in parts(promql.parse(text)):
        if isinstance(part, promql.VectorSelector):
            metric = metric_of(part.name)
            asked = {matcher.name for matcher in part.matchers.matchers}
            assert asked <= labels_of(metric), (query, asked - labels_of(metric))
            known |= labels_of(metric)
        elif isinstance(part, promql.AggregateExpr) and part.modifier is not None:
            grouped |= set(part.modifier.labels)
    assert known, f"{query} asks for nothing of ours"
    assert grouped <= known, (query, grouped - known)
    return grouped - {"le"} or known


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_can_be_raised_and_understood(rule: dict[str, Any]) -> None:
    """An alert's query can be parsed and asks for metrics and labels that there are; its text says what is the matter
    and what to do, and takes no label that its query does not bring."""
    labels = check(rule["expr"])
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "runbook"}
    assert all(len(text) > 20 and "\n" not in text.strip() for text in notes.values())
    for text in notes.values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}


def test_every_cause_has_an_alert() -> None:
    """Each kind of problem that an overview tells of has an alert, by ``smqueue_problem`` or by a metric of its own."""
    told = {kind for rule in RULES for kind in re.findall(r'smqueue_problem\{kind="(\w+)"', rule["expr"])}
    own = {"behind": "smqueue_schedule_lag_seconds", "quarantined": "smqueue_quarantined_machines"}
    own["unsent"] = "smqueue_unsent_tasks"
    for kind in KINDS:
        assert kind in told or any(own[kind] in rule["expr"] for rule in RULES), kind
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("query", QUERIES)
def test_the_dashboard_asks_for_what_there_is(query: str) -> None:
    """A panel's query can be parsed, and asks for metrics and labels that there are."""
    check(query)


def test_the_dashboard_can_be_imported() -> None:
    """Panels have ids of their own, do not overlap, take the data source that is chosen, and legends take only labels
    that there are; and every metric is on it."""
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        area = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not area & cells, panel["title"]
        assert max(x for x, _ in area) < 24
        cells |= area
    for panel in PANELS:
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= check(target["expr"])
    asked = {metric_of(name).name for query in QUERIES for name in re.findall(r"smqueue_\w+", query)}
    assert asked == set(TABLE)
    for one in BOARD["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", one["definition"])
        assert found is not None
        assert found[3] in labels_of(TABLE[found[1]])


def test_the_page_has_all_metrics() -> None:
    """The tables of docs/metrics.md have every metric with its type and labels, and every alert, and no others."""
    page = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(smqueue_\w+)(?:\{([\w,]*)\})?` \| (\w+) \|", page, re.MULTILINE)
    told = {name: (kind, tuple(filter(None, labels.split(",")))) for name, labels, kind in rows}
    assert told == {metric.name: (metric.type, metric.labels) for metric in METRICS}
    assert re.findall(r"^\| `(Smqueue\w+)` \|", page, re.MULTILINE) == [rule["alert"] for rule in RULES]
