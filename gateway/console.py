"""Terminal output of the commands: progress, the start-up summary, the findings of the doctor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from gateway.doctor.findings import Finding, Level
from gateway.host.packages import own_version

_NO_ISOLATION = (
    "This is the [bold]process[/bold] engine: it isolates nothing. Whatever runs here can read and change every file "
    "that you can, and use your network. It is for trying things out on this machine, with code that you trust.\n\n"
    "The real thing runs every piece of code in a Docker container of its own: install and start Docker "
    "(on Debian or Ubuntu: [bold]apt install docker.io[/bold]; [bold]make serve[/bold] as root does both), then start "
    "Cellblock again; [bold]cellblock doctor[/bold] says what is missing."
)

_MARKS = {Level.OK: "[green]ok[/green]", Level.WARN: "[yellow]warn[/yellow]", Level.FAIL: "[bold red]FAIL[/bold red]"}


_STEP = re.compile(r"Step (?P<at>\d+)/(?P<of>\d+) : ")


@contextmanager
def showing_progress(console: Console, title: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a line of progress: beside a bar on a terminal, as plain lines elsewhere.

    Docker's lines of the form `Step 3/9 : …` move the bar.
    """
    if not console.is_terminal:
        yield lambda line: console.print(f"{title}: {line}", markup=False, highlight=False, soft_wrap=True)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.description}[/bold]"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[steps]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[line]}[/dim]", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        task = progress.add_task(escape(title), total=None, steps="", line="")

        def show(line: str) -> None:
            if (step := _STEP.match(line)) is not None:
                at, of = int(step["at"]), int(step["of"])
                progress.update(task, completed=at - 1, total=of, steps=f"step {at} of {of}")
            progress.update(task, line=escape(line))

        yield show


def show_built(console: Console, tag: str, *, is_new: bool, took_s: float, size_bytes: int) -> None:
    """Say in one line what a build has come to."""
    size = f"{size_bytes / 1e9:.2f} GB"
    if is_new:
        line = f"Built {tag} ({size}) in {_duration(took_s)}."
    else:
        line = f"Nothing to do: {tag} ({size}) is there, built from these sources and settings."
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def greet(console: Console, *, engine: str, kernel_image: str, database: str, url: str, token_required: bool) -> None:
    """Print the start-up summary and a command to try. `kernel_image` is empty for the process engine."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("engine", engine)
    if kernel_image:
        table.add_row("kernel image", kernel_image)
    table.add_row("database", escape(database))
    table.add_row("tokens", "required" if token_required else "none needed: this machine only")
    table.add_row("listening on", f"[bold]{url}[/bold]")
    console.print()
    console.print(f"[bold]Cellblock {own_version()}[/bold] is listening.")
    console.print(table)
    if engine == "process":
        console.print(Panel(_NO_ISOLATION, title="No isolation", border_style="yellow"))
    console.print("Try:")
    console.print(_curl(url, token_required=token_required), markup=False, highlight=False, soft_wrap=True)
    console.print()


def warn_of_missing_packages(console: Console, missing: Collection[str], python: str) -> None:
    """Say what kernels of the process engine do without, and how to get it."""
    text = (
        "The packages of [bold]build.dependencies[/bold] could not be installed; the log says why. Kernels run in the "
        f"gateway's own Python environment, without {escape(', '.join(missing))}.\n\n"
        "Start Cellblock again once there is a network (behind a proxy, set [bold]build.proxy[/bold]), or install them "
        "there by the line below. An empty list of [bold]build.dependencies[/bold] does without them for good."
    )
    console.print(Panel(text, title="Packages are missing", border_style="yellow"))
    console.print(f"  {python} -m pip install {' '.join(missing)}", markup=False, highlight=False, soft_wrap=True)


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """Print a line for each finding, group by group, with the remedy below the problem; and how many are how bad."""
    width = max((len(finding.name) for finding in findings), default=0)
    for group, several in groupby(findings, key=lambda finding: finding.group):
        console.print(f"[bold]{group.capitalize()}[/bold]")
        table = Table(show_header=False, box=None, padding=(0, 1))
        table.add_column(width=max(map(len, Level)))
        table.add_column(width=width)
        table.add_column()
        for finding in several:
            what = escape(finding.what)
            if finding.what_to_do:
                what += f"\n[dim]→[/dim] {escape(finding.what_to_do)}"
            table.add_row(_MARKS[finding.level], escape(finding.name), what)
        console.print(table)
    counts = Counter(finding.level for finding in findings)
    said = [f"{counts[level]} {level}" for level in Level if counts[level]]
    console.print(f"{len(findings)} checks: {', '.join(said)}.")


def _curl(url: str, *, token_required: bool) -> str:
    token = " -H 'Authorization: Bearer <token>'" if token_required else ""
    body = """'{"code": "print(\\"Hello, World!\\")"}'"""
    return f"  curl {url}/runcode{token} -H 'Content-Type: application/json' -d {body}"
