"""The packages that kernels have: the requirements and the constraints that pip gets.

Shared by the kernel image and the process engine's environment, which hold the same packages therefore. Without Docker.
"""

from __future__ import annotations

from pathlib import Path

from sessions.errors import SetUpFailed
from sessions.settings import BuildSettings

OWN_REQUIREMENTS = ("ipykernel>=7.4,<7.5", "jupyter_client>=8.9,<9", "pyzmq", "tornado>=6.5.8,<6.7", "tzdata")
"""What the supervisor and the kernels need. The upper bounds are those of pyproject.toml."""

NO_CONSTRAINTS = "none"

_HERE = Path(__file__).parent


def requirements(settings: BuildSettings) -> bytes:
    """A requirements file for pip: what the configuration asks for, then what the supervisor needs."""
    return "".join(f"{line}\n" for line in (*settings.dependencies, *OWN_REQUIREMENTS)).encode()


def constraints(settings: BuildSettings) -> bytes:
    """A constraints file for pip: ours, the operator's, or an empty one. Raises SetUpFailed."""
    if settings.constraints == NO_CONSTRAINTS:
        return b""
    path = Path(settings.constraints).expanduser() if settings.constraints else _HERE / "constraints.txt"
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetUpFailed(
            f"The file that `build.constraints` names cannot be read ({error.strerror}): correct or empty it."
        ) from error
