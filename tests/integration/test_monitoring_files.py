"""The dashboard, the alerts and the page about metrics: each names metrics, labels and values that there are."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from http_face import Face
from prometheus_client.parser import text_string_to_metric_families

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "grafana" / "cellblock.json").read_text())
ALERTS = yaml.safe_load((DOCS / "prometheus" / "alerts.yml").read_text())
PAGE = (DOCS / "monitoring.md").read_text()

OF_PROMETHEUS = {"job", "instance"}
UNBOUNDED = {"status", "route"}
"""Labels of HTTP, whose values depend on what was asked for."""

EXPLAINED = {"stage", "cause", "state", "lane", "kind", "what", "outcome"}

Labels = dict[str, dict[str, set[str]]]
"""The values of each label of each metric."""


@pytest.fixture
async def scraped(face: Face, client: httpx.AsyncClient) -> Labels:
    assert face.service.figures.of_zygote is not None
    await client.get("/healthz")
    labels: Labels = defaultdict(lambda: defaultdict(set))
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        for sample in family.samples:
            of = labels[sample.name]
            for name, value in sample.labels.items():
                of[name].add(value)
    return labels


def words(text: str) -> list[str]:
    """The names in it, as Markdown marks them."""
    return re.findall(r"`(\w+)`", text)


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def check(expression: str, scraped: Labels) -> None:
    """Assert that a query asks for metrics and labels that there are, and for values that can be."""
    found = re.findall(r"\b((?:cellblock|process|python)_\w+|up)(?:\{([^}]*)\})?", expression)
    assert found, expression
    known = set(OF_PROMETHEUS)
    for metric, matchers in found:
        assert metric == "up" or metric in scraped, metric
        known |= set(scraped[metric])
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)"', matchers):
            assert label in OF_PROMETHEUS or label in scraped[metric], (metric, label)
            if label not in OF_PROMETHEUS | UNBOUNDED or (metric, label) == ("cellblock_runs_total", "status"):
                assert operator == "=", expression
                assert value in scraped[metric][label], (metric, label, value)
    for grouped in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= known, grouped


def test_every_query_is_answered_by_metrics_that_there_are(scraped: Labels) -> None:
    for expression in expressions():
        check(expression, scraped)


@pytest.mark.parametrize(
    "wrong",
    [
        "cellblock_run_total",
        'cellblock_runs_total{statos="ok"}',
        'cellblock_runs_total{status="okay"}',
        "sum by (tenant) (cellblock_runs_total)",
    ],
)
def test_a_query_that_asks_for_what_there_is_not_is_found(scraped: Labels, wrong: str) -> None:
    with pytest.raises(AssertionError):
        check(wrong, scraped)


def test_legends_name_labels_that_the_query_leaves(scraped: Labels) -> None:
    for panel in panels():
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = re.search(r"\bby\s*\(([^)]*)\)", target["expr"])
            left = {label.strip() for label in grouped[1].split(",")} if grouped else OF_PROMETHEUS
            assert named <= left | (OF_PROMETHEUS if "sum" not in target["expr"] else set()), (panel["title"], named)
    assert scraped


def test_panels_and_alerts_have_names_of_their_own() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)
    alerts = [rule["alert"] for group in ALERTS["groups"] for rule in group["rules"]]
    assert len(set(alerts)) == len(alerts)
    assert set(re.findall(r"`(Cellblock\w+)`", PAGE)) == set(alerts)


def test_the_page_has_every_metric_with_its_labels_and_no_other(scraped: Labels) -> None:
    rows = re.findall(r"^\| (`cellblock_[^|]*) \|([^|]*)\|", PAGE, re.MULTILINE)
    told = {
        name: set(re.findall(r"`(\w+)`", labels)) for names, labels in rows for name in re.findall(r"`(\w+)`", names)
    }
    there = {
        re.sub(r"_(bucket|count|sum)$", "", name): set(labels) - {"le"}
        for name, labels in scraped.items()
        if name.startswith("cellblock_")
    }
    assert told == there


def test_the_page_has_every_stage_cause_and_state(scraped: Labels) -> None:
    for name, labels in scraped.items():
        for label, values in labels.items():
            if name.startswith("cellblock_") and label in (
                "stage",
                "cause",
                "state",
                "lane",
                "kind",
                "what",
                "outcome",
                "part",
            ):
                assert all(f"`{value}`" in PAGE for value in values), (name, label)
