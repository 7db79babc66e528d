"""Puts tables and pictures into the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import pictures
from bench.tables import blocks, filled

PICTURES = "pictures"
_PAGE = "# What it costs\n"


def draw(results: dict[str, Any], out: Path, readme: Path | None) -> None:
    """The pictures, the page, and the README's part where there is one."""
    pictures.draw(results, out / PICTURES)
    made = blocks(results)
    page = out / "performance.md"
    text = page.read_text() if readme is not None else _new_page(made)
    page.write_text(filled(text, made))
    if readme is not None:
        readme.write_text(filled(readme.read_text(), made))


def _new_page(made: dict[str, str]) -> str:
    """All there is, for a run whose figures are not for the documentation."""
    return _PAGE + "".join(f"\n## {name}\n\n<!-- bench: {name} --><!-- bench end -->\n" for name in made)
