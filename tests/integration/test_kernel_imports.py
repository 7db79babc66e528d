"""What a kernel still imports after the fork: each module costs every run its milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib.util, json, os, sys
from kernel_image import kernel_program
figures = ["matplotlib.pyplot"] if importlib.util.find_spec("matplotlib") else []  # part of the image, not of ours
failed = kernel_program.import_all(figures)
before = set(sys.modules)
from ipykernel.kernelapp import IPKernelApp
def start(app):
    with open(sys.argv_of_test[2], "w") as file:
        json.dump({"failed": failed, "late": sorted(set(sys.modules) - before)}, file)
    os._exit(0)
IPKernelApp.start = start
sys.argv_of_test = sys.argv
kernel_program.run_kernel(sys.argv[1])
"""
LATE = {"readline"}
"""Not part of every Python."""


def test_a_kernel_imports_nothing_after_the_fork(tmp_path: Path) -> None:
    connection = {f"{name}_port": number for number, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
    connection |= {"ip": str(tmp_path / "k"), "transport": "ipc", "key": "k", "signature_scheme": "hmac-sha256"}
    (tmp_path / "connection.json").write_text(json.dumps(connection))
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "MPLCONFIGDIR": str(tmp_path),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "connection.json"), str(tmp_path / "found.json")]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=True, timeout=120)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["failed"] == {}
    assert set(found["late"]) - LATE == set()
