"""Programs of others, each from PyPI into a virtual environment of its own, when it is first asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from bench.progress import say

ROOT = Path(sys.prefix) / "bench"
_TIMEOUT_S = 300

versions: dict[str, str] = {}
"""The releases that have taken part so far, by name."""


class Unavailable(Exception):
    """A contestant cannot take part, and why."""


def python_with(name: str, *requirements: str) -> Path:
    """The interpreter of an environment that has these. Raises Unavailable."""
    home = ROOT / name
    done = home / "requirements"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text() != wanted:
        say(f"installing {', '.join(requirements)}")
        shutil.rmtree(home, ignore_errors=True)
        try:
            _call(sys.executable, "-m", "venv", str(home))
            _call(str(home / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements)
        except (OSError, subprocess.SubprocessError) as error:
            detail = getattr(error, "stderr", None) or str(error)
            raise Unavailable(f"not installed: {detail.strip().splitlines()[-1][:200]}") from error
        done.write_text(wanted)
    return home / "bin/python"


def note_version(python: Path, package: str) -> None:
    """Find out which release an environment has."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    versions[package] = _call(str(python), "-c", code).strip()


def _call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S).stdout
