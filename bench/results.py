"""The file of results: all that was measured, with the machine and the versions. Tables and pictures follow from it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import docker

from bench.contestants.installed import versions

# Of others: it is read before anything is measured.
_LOAD = round(os.getloadavg()[0], 1)
VERSIONED = ("ipykernel", "jupyter_client", "tornado", "pyzmq")


def load(path: Path) -> dict[str, Any]:
    """What is there; nothing where there is no file."""
    return dict(json.loads(path.read_text())) if path.exists() else {"rows": {}}


def store(path: Path, results: dict[str, Any], row: str, figures: dict[str, Any], *, quick: bool) -> None:
    """Put one row in, and write the file: a row that was measured is not lost when a later one fails."""
    results["machine"] = machine()
    stamp = {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
        "quick": quick,
        "load": _LOAD,
        "versions": dict(versions),
    }
    results["rows"][row] = {**stamp, **figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    model = next((value.strip() for name, value in fields.items() if name.strip() == "model name"), platform.machine())
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory.split()[1]) / 2**20),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "docker": docker.from_env().version()["Version"],
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    }


def commit() -> str:
    """Of the code that was measured; `+` where something was changed since."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "gateway", "sessions", "kernel_image"],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + "+" * bool(changed.stdout.strip())
