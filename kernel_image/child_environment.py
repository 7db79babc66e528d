"""What child processes inherit from a kernel of any language: no terminal, no colours, no pager, and whole lines."""

from __future__ import annotations

import os
from pathlib import Path

_CHILD_PYTHON = Path(__file__).resolve().parent / "child_python"


def prepare() -> None:
    """Set it in this process's own environment."""
    paths = [str(_CHILD_PYTHON), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.update(TERM="dumb", PAGER="cat", GIT_PAGER="cat")
    for name in ("CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR"):
        os.environ.pop(name, None)
