"""From results to pictures: SVG files that are the same whenever the results are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.stats import summary
from bench.tables import BARE, MB, cpu_of_run, rate

mpl.use("Agg")
_STYLE = {
    "svg.hashsalt": "cellblock",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "axes.edgecolor": "#9ca3af",
    "legend.frameon": False,
    "figure.facecolor": "white",
}
_COLOURS = {
    "Cellblock": "#2563eb",
    "plain container": "#ea580c",
    "new kernel process, no container": "#6b7280",
    "jupyter_server": "#16a34a",
    "jupyter-kernel-gateway": "#65a30d",
    "llm-sandbox": "#a21caf",
    BARE: "#6b7280",
}
_PARTS = {
    "containers": "#2563eb",
    "engine": "#93c5fd",
    "gateway": "#1e3a8a",
    "database": "#94a3b8",
    "processes": "#16a34a",
    "client": "#d1d5db",
}


def draw(results: dict[str, Any], folder: Path, suffix: str = "svg") -> list[str]:
    """Draw what was measured; returns the names of the pictures that there are now."""
    makers: dict[str, Callable[[dict[str, Any]], Figure]] = {
        "latency": latency,
        "throughput": throughput,
        "processor": processor,
        "sessions": sessions,
    }
    drawn = []
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        with mpl.rc_context(_STYLE):
            try:
                figure = make(results["rows"])
            except KeyError:
                continue
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(folder / f"{name}.{suffix}", metadata=metadata, bbox_inches="tight", dpi=110)
            plt.close(figure)
            drawn.append(name)
    return drawn


def latency(rows: dict[str, Any]) -> Figure:
    """A call after a rest and back to back: bars to the median, lines from there to p95."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), height_ratios=(8, 5), sharex=True, layout="constrained")
    _bars(above, rows["rest"]["series"], "after a rest of half a second")
    _bars(below, rows["calls"]["series"], "back to back")
    below.set_xlabel("ms for print(1), logarithmic; bar: p50, whisker: p95")
    return figure


def _bars(axes: Axes, series: dict[str, Any], title: str) -> None:
    kinds = [kind for kind in series if series[kind]["ms"]][::-1]
    of = [summary(series[kind]["ms"]) for kind in kinds]
    places = range(len(kinds))
    ours = {"stateless", "session", "Jupyter cell"}
    colours = ["#2563eb" if kind in ours else _COLOURS[kind] for kind in kinds]
    names = [f"Cellblock: {kind}" if kind in ours else kind for kind in kinds]
    p50 = [s["p50"] for s in of]
    axes.barh(places, p50, color=colours, height=0.6)
    axes.hlines(places, p50, [s["p95"] for s in of], color="#111827", linewidth=1.5)
    for place, figures in zip(places, of, strict=True):
        text = f"{figures['p50']:.{0 if figures['p50'] >= 100 else 1}f}"
        axes.annotate(text, (figures["p95"], place), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, names)
    axes.set_xscale("log")
    axes.set_xlim(1, 4000)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(title, loc="left")


def throughput(rows: dict[str, Any]) -> Figure:
    """Fresh environments a second against clients."""
    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    counts: set[int] = set()
    for name, windows in rows["fresh"]["windows"].items():
        clients = sorted({window["clients"] for window in windows})
        counts |= set(clients)
        width = 2.5 if name == "Cellblock" else 1.5
        line = [rate(windows, count) for count in clients]
        axes.plot(clients, line, "o-", label=name, color=_COLOURS[name], linewidth=width)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(counts), [str(count) for count in sorted(counts)])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients at once")
    axes.set_ylabel("runs per second")
    axes.set_title("A fresh environment for every run", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def processor(rows: dict[str, Any]) -> Figure:
    """CPU seconds of one fresh run, by part."""
    windows = {name: [w for w in of if w["clients"] == 4] for name, of in rows["fresh"]["windows"].items()}
    names = [name for name, of in windows.items() if of][::-1]
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    left = [0.0] * len(names)
    for part, colour in _PARTS.items():
        widths = [max(cpu_of_run(windows[name]).get(part, 0.0), 0.0) for name in names]
        if any(widths):
            axes.barh(range(len(names)), widths, left=left, color=colour, height=0.6, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        axes.annotate(f"{total:.2f}", (total, place), (5, 0), textcoords="offset points", va="center")
    axes.set_xlim(right=max(left, default=1.0) * 1.12)
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("CPU seconds per run")
    axes.set_title("What one fresh run costs, four at once", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def sessions(rows: dict[str, Any]) -> Figure:
    """Memory and latency against idle sessions."""
    row = rows["sessions"]
    figure, (memory, time) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines = {"Cellblock": row["points"], **row["others"]}
    for name, points in lines.items():
        numbers = [point["sessions"] for point in points]
        megabytes = [sum(point["bytes"].values()) / MB for point in points]
        memory.plot(numbers, megabytes, "o-", label=name, color=_COLOURS[name])
    memory.set_title("Memory of everything, in MB", loc="left")
    memory.set_ylim(bottom=0)
    memory.legend()
    points = [point for point in row["points"] if "ms" in point]
    numbers = [point["sessions"] for point in points]
    for kind, name in (("session", "Cellblock"), (BARE, BARE)):
        for percent, style in (("p50", "o-"), ("p95", "o:")):
            values = [point["ms"][kind][percent] for point in points]
            time.plot(numbers, values, style, label=f"{name}, {percent}", color=_COLOURS[name])
    time.set_title("A call in one of them, in ms", loc="left")
    time.set_ylim(bottom=0)
    time.legend(loc="lower right", ncols=2)
    for axes in (memory, time):
        axes.set_xlabel("sessions, idle, with pandas imported")
    return figure
