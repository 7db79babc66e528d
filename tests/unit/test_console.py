"""What builds show on a terminal, and elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from gateway.console import show_built, showing_progress


def test_elsewhere_progress_is_plain_lines() -> None:
    shown = io.StringIO()
    with showing_progress(Console(file=shown, width=40), "Kernel image") as progress:
        progress("Step 3/9 : RUN [x] " + "y" * 60)
        progress("Collecting numpy")
    assert shown.getvalue() == f"Kernel image: Step 3/9 : RUN [x] {'y' * 60}\nKernel image: Collecting numpy\n"


def test_a_terminal_has_a_bar_of_the_steps_and_the_line_of_the_moment() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120, color_system=None)
    with showing_progress(console, "Kernel image") as progress:
        progress("Looking for a base")
        progress("Step 3/9 : RUN [x]")
        progress("Collecting numpy")
    assert "step 3 of 9" in shown.getvalue()
    assert "Collecting numpy" in shown.getvalue()


def test_a_build_ends_with_its_size_and_time_or_with_nothing_to_do() -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=20)
    show_built(console, "kernel:1", is_new=True, took_s=63.4, size_bytes=1_214_000_000)
    show_built(console, "kernel:1", is_new=True, took_s=8.0, size_bytes=90_000_000)
    show_built(console, "kernel:1", is_new=False, took_s=0.1, size_bytes=1_214_000_000)
    assert shown.getvalue().splitlines() == [
        "Built kernel:1 (1.21 GB) in 1 min 3 s.",
        "Built kernel:1 (0.09 GB) in 8 s.",
        "Nothing to do: kernel:1 (1.21 GB) is there, built from these sources and settings.",
    ]
