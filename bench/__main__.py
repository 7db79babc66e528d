"""`make bench`: measures, and draws tables and pictures from that. Needs Docker, and a machine that is quiet."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from bench import results
from bench.accounting import Engine
from bench.pages import draw
from bench.progress import say
from bench.rows import bodies, calls, fresh, rest, sessions, starts, streaming
from bench.turns import Bench, reason
from gateway.config.loader import load
from sessions.provisioners.image.build import ensure_kernel_image

REPOSITORY = Path(__file__).resolve().parents[1]
ROWS = {
    "rest": rest.measure,
    "calls": calls.measure,
    "fresh": fresh.measure,
    "starts": starts.measure,
    "streaming": streaming.measure,
    "sessions": sessions.measure,
    "bodies": bodies.measure,
}


def main() -> int:
    """Measure what is asked for; a row that fails says so, and the others are measured all the same."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a few minutes, into build/bench; the pages stay as they are"
    )
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {', '.join(ROWS)}; none only draws anew")
    parser.add_argument("--out", type=Path, help="where results, tables and pictures go in place of docs/")
    options = parser.parse_args()
    rows = [row for row in options.rows.replace(",", " ").split() if row != "none"]
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}")
    # End as by Ctrl-C, so that containers and processes are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    out = (options.out or (REPOSITORY / "build/bench" if options.quick else REPOSITORY / "docs")).resolve()
    path = out / "performance.json"
    found = results.load(path)
    failed = _measure(rows, found, path, quick=options.quick) if rows else []
    draw(found, out, None if out != REPOSITORY / "docs" else REPOSITORY / "README.md")
    say(f"results, tables and pictures are in {out}")
    return len(failed)


def _measure(rows: list[str], found: dict[str, Any], path: Path, *, quick: bool) -> list[str]:
    image = asyncio.run(ensure_kernel_image(load(None, {}).build, say))
    failed = []
    with Engine(image) as engine:
        if engine.strangers:
            say(f"{len(engine.strangers)} containers run already: what they do is in the figures of the engine")
        for row in rows:
            say(f"--- {row}")
            try:
                results.store(path, found, row, ROWS[row](Bench(engine, image, quick)), quick=quick)
            except Exception as error:  # noqa: BLE001 - the other rows are measured all the same
                say(f"{row} failed: {reason(error)}")
                failed.append(row)
    return failed


if __name__ == "__main__":
    sys.exit(main())
