"""A Python environment for the kernels of the process engine, with the packages that a kernel image would hold.

It is a venv of the gateway's own interpreter, made when it is missing and made anew when what it should hold changes.
It isolates nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import kernel_image
from sessions.errors import SetUpFailed
from sessions.provisioners.image.requirements import constraints, requirements
from sessions.settings import BuildSettings

Progress = Callable[[str], None]

_STAMP = "installed"
_SHOWN_LINES = 5


def find_environment(settings: BuildSettings, root: Path) -> Path | None:
    """The interpreter of the environment below `root` that these settings ask for, when it is there and whole."""
    directory = _directory(settings, root)
    return _interpreter(directory) if (directory / _STAMP).exists() else None


async def ensure_environment(settings: BuildSettings, root: Path, progress: Progress) -> Path:
    """Make the environment unless it is there; returns its interpreter. Other environments below `root` are removed.

    Raises SetUpFailed when it cannot be made, with the end of what pip printed; nothing is left then.
    """
    if (found := find_environment(settings, root)) is not None:
        return found
    directory = _directory(settings, root)
    await asyncio.to_thread(_remove_all, root)
    directory.mkdir(mode=0o700, parents=True)
    try:
        progress(f"Making a Python environment in {directory}")
        await _run([sys.executable, "-m", "venv", str(directory)], progress)
        _link_kernel_image(directory)
        (directory / "requirements.txt").write_bytes(requirements(settings))
        (directory / "constraints.txt").write_bytes(constraints(settings))
        await _install(directory, settings, progress)
    except BaseException:
        await asyncio.to_thread(_remove_all, root)
        raise
    (directory / _STAMP).touch()
    progress("The environment is made")
    return _interpreter(directory)


async def _install(directory: Path, settings: BuildSettings, progress: Progress) -> None:
    """Install what the files in `directory` list.

    The versions of this release were chosen for the image's Python: where they cannot be had for this one, the newest
    that can be had are installed. Versions that the operator has chosen are not given up. Raises SetUpFailed.
    """
    pip = [str(_interpreter(directory)), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off"]
    command = [*pip, "-r", str(directory / "requirements.txt")]
    try:
        await _run([*command, "-c", str(directory / "constraints.txt")], progress)
    except SetUpFailed:
        if settings.constraints:
            raise
        progress("The versions of this release do not fit this Python: installing the newest that do")
        await _run(command, progress)


async def _run(command: list[str], progress: Progress) -> None:
    """Run a command to its end and pass its lines on. Raises SetUpFailed with the last of them when it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None  # noqa: S101 - asked for above
    lines: list[str] = []
    try:
        async for line in process.stdout:
            lines.append(line.decode(errors="replace").rstrip())
            progress(lines[-1])
        status = await process.wait()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if status != 0:
        raise SetUpFailed(
            "The packages of `build.dependencies` could not be installed for the process engine: "
            f"{' '.join(lines[-_SHOWN_LINES:])} The network is needed once; an empty list runs kernels without."
        )


def _directory(settings: BuildSettings, root: Path) -> Path:
    """One directory per content: the interpreter, the packages and their versions decide."""
    digest = hashlib.sha256(f"{sys.executable}\0{sys.version}\0{Path(kernel_image.__file__).parent}\0".encode())
    digest.update(requirements(settings) + b"\0" + constraints(settings))
    return root / digest.hexdigest()[:12]


def _interpreter(directory: Path) -> Path:
    return directory / "bin" / "python"


def _link_kernel_image(directory: Path) -> None:
    """The supervisor runs in this environment too, from the gateway's own files, as it does in the image."""
    packages = sysconfig.get_path("purelib", vars={"base": str(directory)})
    Path(packages, "kernel_image").symlink_to(Path(kernel_image.__file__).resolve().parent)


def _remove_all(root: Path) -> None:
    for path in root.glob("*"):
        shutil.rmtree(path, ignore_errors=True)
