"""Lists of runs and sessions as tables on a terminal, and as JSON for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.connection import print_json
from gateway.cli.terminal import plain

if TYPE_CHECKING:
    from gateway.client import Usage

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under column names; what is too wide for a terminal is folded, nothing is left out."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)
    table = Table(*columns, box=None, pad_edge=False, title=None, show_edge=False)
    count = 0
    for row in rows:
        table.add_row(*[Text(plain(cell), overflow="fold") for cell in row])
        count += 1
    if count:
        console.print(table)
    else:
        Console(stderr=True).print(f"There are no {title}.")


def show_json(records: Iterable[Any]) -> None:
    """Print dataclasses as one JSON list, with times as the gateway writes them."""
    print_json([as_json(record) for record in records])


def as_json(record: Any) -> dict[str, Any]:
    """One of them."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record) if field.name != "raw"}
    return {name: _json_value(value) for name, value in fields.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def ago(time: datetime | None) -> str:
    """How long ago that was, for people."""
    if time is None:
        return ""
    seconds = (datetime.now(UTC) - time).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def duration(seconds: float) -> str:
    """A length of time in its largest unit."""
    for unit, length in (("d", _DAY_S), ("h", _HOUR_S), ("min", _MINUTE_S)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def milliseconds(usage: Usage | None) -> str:
    """Wall time of a run."""
    if usage is None:
        return ""
    return f"{usage.wall_ms:.0f} ms" if usage.wall_ms < 10_000 else f"{usage.wall_ms / 1000:.1f} s"  # noqa: PLR2004
