"""The parts of `make bench` that compute: percentiles, tables, and the places of a page that they go to."""

from __future__ import annotations

from typing import Any

import pytest

from bench.stats import added, less, per, percentile, summary
from bench.tables import NOT_MEASURED, blocks, cpu_of_run, filled, goals, table

WINDOW = {
    "clients": 4,
    "per_s": 4.0,
    "ms": [900.0, 1100.0],
    "cpu_s": {"containers": 0.2, "gateway": 0.1, "client": 0.5},
}
PLAIN = {"clients": 4, "per_s": 2.0, "ms": [2000.0], "cpu_s": {"containers": 0.7, "client": 0.1}}


def results(**rows: Any) -> dict[str, Any]:
    stamp = {"at": "2026-01-02 03:04 UTC", "commit": "abc1234", "quick": False, "load": 0.0}
    return {"rows": {name: stamp | figures for name, figures in rows.items()}}


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (95, 3.85), (100, 4.0)])
def test_percentiles_lie_between_the_nearest_values(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(expected)


def test_the_percentiles_of_one_value_are_that_value() -> None:
    assert summary([7.0]) == {"n": 1, "p50": 7.0, "p95": 7.0, "p99": 7.0, "least": 7.0}


def test_totals_are_compared_divided_and_added_part_by_part() -> None:
    assert less({"a": 5.0, "b": 1.0}, {"a": 2.0}) == {"a": 3.0, "b": 1.0}
    assert per({"a": 3.0}, 2) == {"a": 1.5}
    assert added([{"a": 1.0}, {"a": 2.0, "b": 3.0}]) == {"a": 3.0, "b": 3.0}


def test_windows_with_more_runs_weigh_more_in_the_cost_of_a_run() -> None:
    cpu = cpu_of_run([{"ms": [1.0] * 3, "cpu_s": {"engine": 1.0}}, {"ms": [1.0], "cpu_s": {"engine": 5.0}}])
    assert cpu == {"engine": 2.0}


def test_a_goal_is_met_missed_or_was_not_measured() -> None:
    fresh = {"windows": {"Cellblock": [WINDOW], "plain container": [PLAIN]}, "failed": {}}
    lines = goals(results(fresh=fresh)["rows"]).splitlines()
    assert lines[2] == "| fresh runs per second, 4 clients ÷ the plain way | 2.00 | ≥ 1.80 | yes |"
    assert lines[3].endswith("| 0.30 s | ≤ 0.40 s | yes |")  # without the client
    assert all(NOT_MEASURED in line for line in lines[4:])


def test_who_could_not_take_part_has_a_line_that_says_why() -> None:
    fresh = {"windows": {"Cellblock": [WINDOW], "gone": []}, "failed": {"gone": "not installed: no network"}}
    series = {"bare kernel": {"ms": [1.0]}, "gone": {"ms": [], "failed": "RuntimeError: it does not answer"}}
    made = blocks(results(fresh=fresh, rest={"series": series}))
    assert "| gone | not installed: no network |" in made["fresh"]
    assert "| gone, after a rest | RuntimeError: it does not answer |" in made["calls"]


def test_every_table_of_results_without_rows_says_so() -> None:
    assert all("measured" in text for text in blocks({"rows": {}}).values())


def test_a_page_is_changed_between_its_marks_alone() -> None:
    page = "before\n<!-- bench: goals -->old<!-- bench end -->\nafter <!-- bench: calls --><!-- bench end -->"
    once = filled(page, {"goals": table(["a", "b"], [["1", "2"]]), "calls": "none"})
    assert once.startswith(
        "before\n<!-- bench: goals -->\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n<!-- bench end -->\nafter "
    )
    assert filled(once, {"goals": "new", "calls": "none"}) == filled(page, {"goals": "new", "calls": "none"})
    with pytest.raises(KeyError):
        filled(page, {"goals": "new"})
