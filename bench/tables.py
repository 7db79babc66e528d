"""From results to Markdown. Pure; a row that was not measured, or that failed, is a line that says so."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.stats import added, percentile, summary

MB = 1e6
NOT_MEASURED = "not measured"
BARE = "bare kernel"
NOISY = 0.5
_PARTS = ("engine", "containers", "gateway", "database", "processes", "client")

Rows = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is to be at most, or at least; `form` writes it with its unit."""

    what: str
    figure: Callable[[Rows], float]
    form: str
    limit: float
    more_is_better: bool = False


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def blocks(results: dict[str, Any]) -> dict[str, str]:
    """Everything that the pages show, by the name of its place."""
    rows: Rows = results["rows"]
    makers: dict[str, Callable[[Rows], str]] = {
        "goals": goals,
        "calls": calls,
        "processor": processor,
        "fresh": fresh,
        "starts": starts,
        "streaming": streaming,
        "sessions": sessions,
        "bodies": bodies,
    }
    return {"machine": machine(results), **{name: _or_not(make, rows) for name, make in makers.items()}}


def filled(text: str, made: dict[str, str]) -> str:
    """A page with each place between `<!-- bench: name -->` and `<!-- bench end -->` filled in.

    Raises KeyError for a name that nothing is made for.
    """

    def fill(match: re.Match[str]) -> str:
        return f"<!-- bench: {match['name']} -->\n\n{made[match['name']]}\n\n<!-- bench end -->"

    return re.sub(r"<!-- bench: (?P<name>[a-z]+) -->.*?<!-- bench end -->", fill, text, flags=re.DOTALL)


def machine(results: dict[str, Any]) -> str:
    """What was measured, on what, and when."""
    if "machine" not in results:
        return f"Nothing: {NOT_MEASURED}."
    of = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in of["versions"].items())
    stamps = {(row["commit"], row["at"].split()[0], row["quick"]) for row in results["rows"].values()}
    when = "; ".join(f"commit {c} on {day}{', a short run' * quick}" for c, day, quick in sorted(stamps))
    others = {
        name: figures["versions"][name] for figures in results["rows"].values() for name in figures.get("versions", {})
    }
    programs = "".join(f", {name} {version}" for name, version in sorted(others.items()))
    load = max((row["load"] for row in results["rows"].values()), default=0.0)
    noise = (
        f" Other work ran on it (load average {load}), so the times and ratios here are only rough."
        if load > NOISY
        else ""
    )
    return (
        f"{of['cpu']}, {of['cores']} cores, {of['memory_gib']} GiB; Linux {of['kernel']}, Docker {of['docker']}, "
        f"Python {of['python']}, {versions}{programs}. Measured at {when}.{noise}"
    )


def goals(rows: Rows) -> str:
    """What Cellblock is to reach, and what it does."""
    return table(["what", "measured", "goal", ""], [_goal(rows, goal) for goal in _GOALS])


def calls(rows: Rows) -> str:
    """Times of calls, after a rest and back to back."""
    head = ["`print(1)`", "p50", "p95", "p99", "÷ bare", "calls"]
    lines = []
    for title, row in (("after a rest", "rest"), ("back to back", "calls")):
        for kind, figures in rows.get(row, {}).get("series", {}).items():
            name = f"{kind}, {title}"
            if not figures["ms"]:
                lines.append([name, figures.get("failed", NOT_MEASURED), "", "", "", ""])
                continue
            of = summary(figures["ms"])
            ratio = of["p50"] / _p50(rows, row, BARE)
            times = [f"{of[p]:.1f} ms" for p in ("p50", "p95", "p99")]
            lines.append([name, *times, f"{ratio:.2f}", str(of["n"])])
    return table(head, lines) if lines else NOT_MEASURED


def processor(rows: Rows) -> str:
    """Who spends how much on a session's call."""
    return table(["part", "CPU per call"], [[part, f"{ms:.2f} ms"] for part, ms in rows["calls"]["cpu_ms"].items()])


def fresh(rows: Rows) -> str:
    """Runs in an environment of their own, four at once."""
    parts = [part for part in _PARTS if any(part in w["cpu_s"] for ws in _windows(rows).values() for w in ws)]
    lines = []
    for name, windows in _windows(rows).items():
        four = [w for w in windows if w["clients"] == 4]
        if not four:
            continue
        ms = [took for window in four for took in window["ms"]]
        of = summary(ms) if ms else {"p50": 0.0, "p95": 0.0}
        cpu = cpu_of_run(four)
        lines.append(
            [name, f"{rate(windows, 4):.2f}", f"{of['p50']:.0f} ms", f"{of['p95']:.0f} ms"]
            + [f"{cpu[part]:.3f} s" if part in cpu else "" for part in parts]
            + [f"{sum(cpu.values()):.2f} s"]
        )
    lines += [[name, why, *[""] * (len(parts) + 3)] for name, why in rows["fresh"]["failed"].items()]
    return table(["each run in", "runs/s", "p50", "p95", *parts, "CPU together"], lines)


def starts(rows: Rows) -> str:
    """From nothing to a kernel that answers, and what comes first in it."""
    head = ["", "p50", "p95", "times"]
    lines = []
    for kind, ms in rows["starts"]["ms"].items():
        of = summary(ms)
        lines.append([kind, f"{of['p50']:.0f} ms", f"{of['p95']:.0f} ms", str(of["n"])])
    lines += [[f"start: {name}", why, "", ""] for name, why in rows["starts"]["failed"].items()]
    return table(head, lines)


def streaming(rows: Rows) -> str:
    """Many lines, and single ones."""
    row = rows["streaming"]
    lines = []
    for kind in row["buffered"]["all_s"]:
        cells = [kind]
        for way in ("buffered", "flushed"):
            of = statistics.median(row[way]["all_s"][kind])
            cells += [f"{of:.2f} s", f"{of / statistics.median(row[way]['all_s'][BARE]):.2f}"]
        cells.append(f"{statistics.median(row['single_ms'][kind]):.1f} ms")
        cells.append(str(row["buffered"]["missing"][kind] + row["flushed"]["missing"][kind]))
        lines.append(cells)
    buffered, flushed = (f"{row[way]['lines']:,} lines, {way}" for way in ("buffered", "flushed"))
    return table(["", buffered, "÷ bare", flushed, "÷ bare", "a single line", "missing"], lines)


def sessions(rows: Rows) -> str:
    """What many sessions that have imported pandas need."""
    row = rows["sessions"]
    lines = []
    for point in row["points"]:
        parts = [f"{point['bytes'][part] / MB:.0f}" for part in ("gateway", "database", "sandboxes", "shared")]
        call, ratio = "", ""
        if "ms" in point:
            p50 = point["ms"]["session"]["p50"]
            call, ratio = f"{p50:.1f} ms", f"{p50 / point['ms'][BARE]['p50']:.2f}"
        lines.append(
            ["Cellblock", str(point["sessions"]), *parts, f"{sum(point['bytes'].values()) / MB:.0f}", call, ratio]
        )
    for name, points in row["others"].items():
        for point in points:
            total = f"{sum(point['bytes'].values()) / MB:.0f}"
            lines.append([name, str(point["sessions"]), "", "", "", "", total, "", ""])
    lines += [[name, why, *[""] * 7] for name, why in row["failed"].items()]
    head = [
        "",
        "sessions",
        "gateway MB",
        "database MB",
        "sandboxes MB",
        "shared MB",
        "together MB",
        "call p50",
        "÷ bare",
    ]
    return table(head, lines)


def bodies(rows: Rows) -> str:
    """The gateway's memory around large bodies and answers."""
    row = rows["bodies"]
    lines = [["before the first round", f"{row['before_mb']:.0f} MB"]]
    lines += [[f"at most, with {part}", f"{max(peaks):.0f} MB"] for part, peaks in row["peak_mb"].items()]
    lines += [["a while after each round", ", ".join(f"{after:.0f}" for after in row["after_mb"]) + " MB"]]
    return table(["resident memory of the gateway", ""], lines)


# --- figures that pictures show too -----------------------------------------------------------------------------------


def rate(windows: Sequence[dict[str, Any]], clients: int) -> float:
    """Runs per second: the median of the windows with so many clients."""
    return float(statistics.median(window["per_s"] for window in windows if window["clients"] == clients))


def cpu_of_run(windows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """CPU seconds of one run by part: the mean of the windows, each weighed by its runs."""
    runs = [len(window["ms"]) for window in windows]
    totals = [
        {part: each * count for part, each in window["cpu_s"].items()}
        for window, count in zip(windows, runs, strict=True)
    ]
    return {part: total / max(sum(runs), 1) for part, total in added(totals).items()}


# --- goals ------------------------------------------------------------------------------------------------------------


def _windows(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    return dict(rows["fresh"]["windows"])


def _p50(rows: Rows, row: str, kind: str) -> float:
    return float(statistics.median(rows[row]["series"][kind]["ms"]))


def _sustained(rows: Rows) -> float:
    windows = _windows(rows)
    return rate(windows["Cellblock"], 4) / rate(windows["plain container"], 4)


def _cpu_of_fresh(rows: Rows) -> float:
    cpu = cpu_of_run([window for window in _windows(rows)["Cellblock"] if window["clients"] == 4])
    return sum(value for part, value in cpu.items() if part != "client")


def _burst(rows: Rows) -> float:
    return float(statistics.median(rows["fresh"]["bursts_s"]["last answer"]) * 1e3 / _start(rows, "start: Cellblock"))


def _start(rows: Rows, kind: str) -> float:
    return float(statistics.median(rows["starts"]["ms"][kind]))


def _rest_ratio(rows: Rows, kind: str, percent: float) -> float:
    """Of one percentile, to the same of the bare kernel."""
    series = rows["rest"]["series"]
    return percentile(series[kind]["ms"], percent) / percentile(series[BARE]["ms"], percent)


def _spread(rows: Rows, kind: str) -> float:
    return percentile(rows["calls"]["series"][kind]["ms"], 95) / _p50(rows, "calls", kind)


def _call_ratio(rows: Rows, kind: str) -> float:
    return _p50(rows, "calls", kind) / _p50(rows, "calls", BARE)


def _stream(rows: Rows, way: str) -> float:
    all_s = rows["streaming"][way]["all_s"]
    return float(statistics.median(all_s["server-sent events"]) / statistics.median(all_s[BARE]))


def _idle_ratio(rows: Rows) -> float:
    points = [point["ms"] for point in rows["sessions"]["points"] if "ms" in point]
    ratios = [ms["session"]["p50"] / ms[BARE]["p50"] for ms in points]
    return float(ratios[-1] / ratios[0])


def _gateway_growth(rows: Rows) -> float:
    points = [point["bytes"]["gateway"] for point in rows["sessions"]["points"]]
    return float(points[-1] / points[0])


_GOALS = [
    Goal("fresh runs per second, 4 clients ÷ the plain way", _sustained, "{:.2f}", 1.8, more_is_better=True),
    Goal("CPU of one fresh run: engine, containers, gateway, database", _cpu_of_fresh, "{:.2f} s", 0.4),
    Goal("burst of 10 with 4 warm: the last answer ÷ a container's start", _burst, "{:.1f}", 3),
    Goal(
        "memory of an idle warm container, by `docker stats`",
        lambda r: r["sessions"]["warm_container_bytes"] / MB,
        "{:.0f} MB",
        55,
    ),
    Goal(
        "memory of an idle session with pandas, likewise",
        lambda r: r["sessions"]["session_bytes"] / MB,
        "{:.0f} MB",
        55,
    ),
    Goal("start to a warm kernel", lambda r: _start(r, "start: Cellblock"), "{:.0f} ms", 500),
    Goal("restart to an answer", lambda r: _start(r, "restart to an answer"), "{:.0f} ms", 100),
    Goal("`import pandas, matplotlib.pyplot` in it", lambda r: _start(r, "import in it"), "{:.0f} ms", 10),
    Goal("session call, back to back ÷ bare", lambda r: _call_ratio(r, "session"), "{:.2f}", 1.5),
    Goal("stateless call after a rest ÷ bare", lambda r: _rest_ratio(r, "stateless", 50), "{:.2f}", 1.25),
    Goal("the same, p99 ÷ p99", lambda r: _rest_ratio(r, "stateless", 99), "{:.2f}", 2.5),
    Goal("Jupyter cell, back to back ÷ bare", lambda r: _call_ratio(r, "Jupyter cell"), "{:.2f}", 1.3),
    Goal("Jupyter cell, p95 ÷ p50", lambda r: _spread(r, "Jupyter cell"), "{:.2f}", 1.6),
    Goal("CPU of a session call: gateway", lambda r: r["calls"]["cpu_ms"]["gateway"], "{:.1f} ms", 3),
    Goal("CPU of a session call: supervisor", lambda r: r["calls"]["cpu_ms"]["supervisor"], "{:.1f} ms", 1.5),
    Goal("CPU of a session call: database", lambda r: r["calls"]["cpu_ms"]["database"], "{:.1f} ms", 1),
    Goal(
        "eight sessions at once, calls per second",
        lambda r: statistics.median(r["calls"]["at_once_per_s"]["session"]),
        "{:.0f}",
        180,
        more_is_better=True,
    ),
    Goal("100,000 lines, buffered ÷ bare", lambda r: _stream(r, "buffered"), "{:.2f}", 1.3),
    Goal("lines, each flushed ÷ bare", lambda r: _stream(r, "flushed"), "{:.2f}", 1.6),
    Goal("first completion in a fresh kernel", lambda r: _start(r, "first completion"), "{:.0f} ms", 150),
    Goal("call ÷ bare with all idle sessions ÷ with one", _idle_ratio, "{:.2f}", 1.1),
    Goal("gateway's memory with all of them ÷ with none", _gateway_growth, "{:.2f}", 1.1),
]


def _goal(rows: Rows, goal: Goal) -> list[str]:
    wanted = ("≥ " if goal.more_is_better else "≤ ") + goal.form.format(goal.limit)
    try:
        value = goal.figure(rows)
    except (KeyError, IndexError, statistics.StatisticsError):
        return [goal.what, NOT_MEASURED, wanted, ""]
    met = value >= goal.limit if goal.more_is_better else value <= goal.limit
    return [goal.what, goal.form.format(value), wanted, "yes" if met else "no"]


def _or_not(make: Callable[[Rows], str], rows: Rows) -> str:
    try:
        return make(rows)
    except (KeyError, statistics.StatisticsError):
        return "Not all of it was measured."
