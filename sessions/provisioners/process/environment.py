"""A Python environment for the kernels of the process engine, with the packages that a kernel image would hold.

It is a venv of the gateway's own interpreter, made when it is missing and made anew when what it should hold changes.
It isolates nothing.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import shutil
import sys
import sysconfig
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

import kernel_image
from sessions.errors import SetUpFailed
from sessions.provisioners.image.requirements import constraints, requirements
from sessions.provisioners.programs import Progress, run_program
from sessions.settings import BuildSettings

_STAMP = "installed"
_LOCK_PAUSE_S = 0.2
_DO_NOT_FIT = ("ResolutionImpossible", "No matching distribution", "Requires-Python")
_FIND_FONTS = """
import importlib.util
if importlib.util.find_spec("matplotlib"):
    import matplotlib.font_manager
"""
_FAILED = (
    "The packages of `build.dependencies` could not be installed for the process engine (the network is needed once; "
    "an empty list runs kernels without)"
)


def find_environment(settings: BuildSettings, root: Path) -> Path | None:
    """The interpreter of the environment below `root` that these settings ask for, when it is there and whole."""
    directory = _directory(settings, root)
    return _interpreter(directory) if (directory / _STAMP).exists() else None


async def ensure_environment(settings: BuildSettings, root: Path, progress: Progress) -> Path:
    """Make the environment unless it is there; returns its interpreter. Others below `root` stay as they are.

    Raises SetUpFailed when it cannot be made, with the end of what pip printed; nothing of it is left then.
    """
    if (found := find_environment(settings, root)) is not None:
        return found
    directory = _directory(settings, root)
    async with _locked(root):
        if not (directory / _STAMP).exists():
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            directory.mkdir(mode=0o700)
            try:
                await _make(directory, settings, progress)
            except BaseException:
                await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
                raise
    return _interpreter(directory)


async def remove_unused(root: Path, kept: Path) -> None:
    """Remove the environments below `root`, but for that of the interpreter `kept` and those of running supervisors.

    Supervisors outlive their gateway, so call this once theirs are taken over or ended.
    """
    async with _locked(root):
        await asyncio.to_thread(_remove_all_but, root, kept)


def matplotlib_variables(python: Path) -> Mapping[str, str]:
    """What tells a supervisor of this interpreter where matplotlib's font cache is, as in the image."""
    home = python.parent.parent.parent
    if not (home / "matplotlib").exists():
        return {}
    return {"CELLBLOCK_MPL_CACHE": str(home / "matplotlib")}


async def _make(directory: Path, settings: BuildSettings, progress: Progress) -> None:
    progress(f"Making a Python environment in {directory}")
    venv = directory / "venv"
    await run_program([sys.executable, "-m", "venv", str(venv)], progress, failed=_FAILED)
    _link_kernel_image(venv)
    (directory / "requirements.txt").write_bytes(requirements(settings))
    (directory / "constraints.txt").write_bytes(constraints(settings))
    await _install(directory, settings, progress)
    program = [str(_interpreter(directory)), "-I", "-c", _FIND_FONTS]
    environment = {**os.environ, "MPLCONFIGDIR": str(directory / "matplotlib")}
    failed = "matplotlib's font cache could not be made"
    await run_program(program, progress, failed=failed, environment=environment)
    (directory / _STAMP).touch()
    progress("The environment is made")


async def _install(directory: Path, settings: BuildSettings, progress: Progress) -> None:
    """Install what the files in `directory` list.

    The versions of this release were chosen for the image's Python: where they cannot be had for this one, the newest
    that can be had are installed. Versions that the operator has chosen are not given up. Raises SetUpFailed.
    """
    pip = [str(_interpreter(directory)), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off"]
    newest = [*pip, "--retries=1", *_network_options(settings), "-r", str(directory / "requirements.txt")]
    pinned = [*newest, "-c", str(directory / "constraints.txt")]
    if settings.constraints:
        await run_program(pinned, progress, failed=_FAILED)
    elif not await _is_installed(pinned, progress):
        progress("The versions of this release do not fit this Python: installing the newest that do")
        await run_program(newest, progress, failed=_FAILED)
        # pip says the same of an index that does not answer, so it is asked again once one has.
        await _is_installed(pinned, progress)


async def _is_installed(command: list[str], progress: Progress) -> bool:
    """Whether pip has found versions that fit each other and this Python. Raises SetUpFailed for all other failures."""
    said: list[str] = []

    def note(line: str) -> None:
        said.append(line)
        progress(line)

    try:
        await run_program(command, note, failed=_FAILED)
    except SetUpFailed:
        if not any(words in line for words in _DO_NOT_FIT for line in said):
            raise
        return False
    return True


@asynccontextmanager
async def _locked(root: Path) -> AsyncIterator[None]:
    """Keep other processes from making or removing environments below `root`. Raises SetUpFailed."""
    lock_fd = _open(root)
    try:
        while True:
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_PAUSE_S)
        yield
    finally:
        os.close(lock_fd)


def _open(root: Path) -> int:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SetUpFailed(f"{root} cannot be used ({error.strerror}): set `server.data_dir` to another one.") from error


def _remove_all_but(root: Path, kept: Path) -> None:
    """A process is known by its first argument: a venv's interpreter is a link, and only this names the venv."""
    commands: list[list[str] | None] = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    used = {kept, *(Path(command[0]) for command in commands if command)}
    for directory in root.iterdir():
        if not any(program.is_relative_to(directory) for program in used):
            shutil.rmtree(directory, ignore_errors=True)


def _network_options(settings: BuildSettings) -> list[str]:
    proxy = [f"--proxy={settings.proxy}"] if settings.proxy else []
    return [*proxy, f"--cert={Path(settings.ca_bundle).expanduser()}"] if settings.ca_bundle else proxy


def _directory(settings: BuildSettings, root: Path) -> Path:
    """One directory per content: the interpreter, the packages and their versions decide."""
    digest = hashlib.sha256(f"{sys.prefix}\0{sys.version}\0{Path(kernel_image.__file__).parent}\0".encode())
    digest.update(requirements(settings) + b"\0" + constraints(settings))
    return root / digest.hexdigest()[:12]


def _interpreter(directory: Path) -> Path:
    return directory / "venv" / "bin" / "python"


def _link_kernel_image(venv: Path) -> None:
    """The supervisor runs in this environment too, from the gateway's own files, and libraries are adapted likewise."""
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv)}))
    (packages / "kernel_image").symlink_to(Path(kernel_image.__file__).resolve().parent)
    hooks = "kernel_image.import_hooks"
    (packages / "cellblock.pth").write_text(f"import {hooks}; {hooks}.install()\n")
