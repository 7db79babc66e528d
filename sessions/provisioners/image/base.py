"""The base that the kernel image is built on: a local one, a pulled one, or one made from the Debian mirror.

Only finds or makes the base; what goes on top of it is build.py's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import docker.errors
import requests
from docker.api.client import APIClient

from sessions.errors import SetUpFailed
from sessions.provisioners.docker.engine import DockerEngine, image_exists
from sessions.provisioners.image.build_stream import follow
from sessions.provisioners.programs import Progress, run_program
from sessions.settings import BuildSettings

DEBIAN = "debian"
"""The value of `build.base` that asks for a base from the Debian mirror."""

_SUITE = "trixie"
_INCLUDE = ("python3", "python3-venv", "ca-certificates", "fonts-wqy-microhei", "libnss-myhostname")
_APT_OPTIONS = ("Acquire::Languages none", "APT::Install-Recommends false")
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_CONFIG = (
    "ENV LANG=C.UTF-8",
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    'CMD ["python3"]',
)
_NO_SUCH_IMAGE = ("manifest unknown", "not found", "denied", "unauthorized", "authentication required")


def debian_base_tag() -> str:
    """The tag of the Debian base; it changes with what is put into it."""
    recipe = repr((_SUITE, _INCLUDE, _APT_OPTIONS, _LEFT_OUT, _CONFIG))
    return f"cellblock-base:debian-{_SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


async def ensure_base(engine: DockerEngine, settings: BuildSettings, progress: Progress) -> str:
    """The name of a base image that the engine has, pulling or making it when needed.

    Without a registry in reach this falls back to Debian, and says so. Raises SetUpFailed, EngineUnavailable.
    """
    name = settings.base
    if name == DEBIAN:
        return await ensure_debian_base(engine, settings, progress)
    if await engine.call(lambda client: image_exists(client, name)):
        return name
    progress(f"Looking for {name} in its registry")
    problem = await engine.call(lambda client: _registry_problem(client, name))
    if problem is None:
        progress(f"Pulling {name}")
        repository, tag = _split_tag(name)
        await follow(engine, lambda client: client.pull(repository, tag, stream=True, decode=True), progress)
        return name
    progress(f"No container registry is in reach ({problem}); making the base from the Debian mirror instead")
    return await ensure_debian_base(engine, settings, progress)


async def ensure_debian_base(engine: DockerEngine, settings: BuildSettings, progress: Progress) -> str:
    """Make a minimal Debian with Python and a CJK font by mmdebstrap, unless it is there. Raises SetUpFailed."""
    tag = debian_base_tag()
    if await engine.call(lambda client: image_exists(client, tag)):
        return tag
    await _ensure_mmdebstrap(progress)
    progress(f"Making a Debian {_SUITE} base with mmdebstrap (about 150 MB, half a minute)")
    with tempfile.TemporaryDirectory(prefix="cellblock-base-") as scratch:
        tarball = Path(scratch) / "base.tar"
        await run_program(
            _mmdebstrap_command(tarball, settings),
            progress,
            failed="The Debian base could not be made",
            environment=_environment(settings.proxy),
        )
        progress(f"Importing {tag}")
        repository, _, version = tag.partition(":")

        def load(client: APIClient) -> None:
            client.import_image_from_file(str(tarball), repository=repository, tag=version, changes=list(_CONFIG))

        await engine.call(load)
    return tag


def _mmdebstrap_command(tarball: Path, settings: BuildSettings) -> list[str]:
    command = ["mmdebstrap", "--variant=minbase", f"--include={','.join(_INCLUDE)}"]
    options = list(_APT_OPTIONS)
    if settings.proxy:
        options += [f'Acquire::http::Proxy "{settings.proxy}"', f'Acquire::https::Proxy "{settings.proxy}"']
    command += [f"--aptopt={option}" for option in options]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
    return [*command, "--format=tar", _SUITE, str(tarball)]


async def _ensure_mmdebstrap(progress: Progress) -> None:
    """Install mmdebstrap where that is ours to do: as root on a Debian-like machine. Raises SetUpFailed elsewhere."""
    if shutil.which("mmdebstrap"):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise SetUpFailed(
            "No container registry is in reach and mmdebstrap is not installed: install mmdebstrap (on Debian or "
            "Ubuntu `sudo apt-get install mmdebstrap debian-archive-keyring`), or set `build.base` to an image with "
            "Python 3.11 or newer that this Docker engine has."
        )
    progress("Installing mmdebstrap")
    packages = ["mmdebstrap", "debian-archive-keyring"]
    for arguments in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *packages]):
        command = ["apt-get", *arguments]
        await run_program(command, progress, failed="mmdebstrap could not be installed", environment=_environment())


def _environment(proxy: str = "") -> dict[str, str]:
    proxies = dict.fromkeys(("http_proxy", "https_proxy"), proxy) if proxy else {}
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", **proxies}


def _registry_problem(client: APIClient, name: str) -> str | None:
    """Why the registry of `name` cannot be asked, or None when it has the image. Bounded by the client's time-out.

    Raises SetUpFailed when the registry answers that there is no such image.
    """
    try:
        client.inspect_distribution(name)  # type: ignore[no-untyped-call]
    except docker.errors.APIError as error:
        said = str(error.explanation or error)
        if any(phrase in said.lower() for phrase in _NO_SUCH_IMAGE):
            raise SetUpFailed(
                f"The registry has no image {name}: check the spelling of `build.base`, or run `docker login`."
            ) from error
        return _last_part(said)
    except requests.exceptions.Timeout:
        return "it does not answer"
    return None


def _last_part(said: str) -> str:
    """The end of a Go error chain, which is what a person can use: `no such host`, `connection refused`."""
    return said.rsplit(": ", 1)[-1].strip() or said


def _split_tag(name: str) -> tuple[str, str | None]:
    """`registry:5000/python:3.13` → (`registry:5000/python`, `3.13`); a digest stays where it is."""
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag or "@" in name:
        return name, None if "@" in name else "latest"
    return repository, tag
