"""The supervisor's program, and what it has when the supervisor begins."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, runpy
from kernel_image import supervisor
supervisor.main = lambda: print(gc.isenabled(), gc.get_freeze_count() > 0)
runpy.run_module("kernel_image", run_name="__main__")
"""


def test_garbage_is_collected_once_all_is_imported() -> None:
    done = subprocess.run([sys.executable, "-I", "-c", PROGRAM], capture_output=True, check=True, text=True)
    assert done.stdout == "True True\n"


def test_nothing_is_imported_that_only_other_processes_need() -> None:
    """Every container pays for it."""
    code = "import sys; before = set(sys.modules); import kernel_image.supervisor; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True, text=True)
    assert not {"IPython", "dataclasses", "jupyter_client", "shutil", "tornado"} & set(done.stdout.split())
