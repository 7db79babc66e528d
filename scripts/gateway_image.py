"""Builds the gateway's image from this checkout, for `make image`. Run by .venv's Python; prints the image's name.

The base, the proxy, the certificates and the network of the build are those of the section `build` of the
configuration, so that a base is made from the Debian mirror where no registry is in reach.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from gateway.config.loader import load
from gateway.console import showing_progress
from gateway.host.packages import own_version
from sessions.errors import CellblockError
from sessions.provisioners.docker.engine import DockerEngine
from sessions.provisioners.image.base import ensure_base
from sessions.provisioners.image.build import build_arguments, build_context, ca_bundle
from sessions.provisioners.image.build_stream import follow
from sessions.provisioners.programs import Progress
from sessions.settings import BuildSettings

REPOSITORY = "cellblock-gateway"
_CHECKOUT = Path(__file__).resolve().parents[1]
_FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "Dockerfile.kernel")
_FOLDERS = ("gateway", "sessions", "kernel_image")
_TIMEOUT_S = 20.0


async def build(settings: BuildSettings, version: str, progress: Progress) -> str:
    """Build `cellblock-gateway:<version>`; returns that. Raises SetUpFailed, EngineUnavailable."""
    tag = f"{REPOSITORY}:{version}"
    engine = DockerEngine(threads=2, timeout_s=_TIMEOUT_S)
    try:
        base = await ensure_base(engine, settings, progress)
        progress(f"Building {tag} on {base}")
        content = {**dict(_sources()), "Dockerfile": (_CHECKOUT / "Dockerfile.gateway").read_bytes()}
        context = build_context({**content, "ca.pem": ca_bundle(settings)})
        await follow(
            engine,
            lambda client: client.build(
                fileobj=io.BytesIO(context),
                custom_context=True,
                tag=tag,
                buildargs={**build_arguments(settings, base), "VERSION": version},
                network_mode=settings.network,
                rm=True,
                forcerm=True,
                decode=True,
                use_config_proxy=False,
            ),
            progress,
        )
    finally:
        await engine.close()
    return tag


def _sources() -> Iterator[tuple[str, bytes]]:
    """What Dockerfile.gateway copies, by path; links are followed."""
    for name in _FILES:
        yield name, (_CHECKOUT / name).read_bytes()
    for folder in _FOLDERS:
        for path in sorted((_CHECKOUT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(_CHECKOUT).as_posix(), path.read_bytes()


def main() -> int:
    """Build it as the configuration says; the version is the argument, if there is one."""
    version = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] else own_version()
    try:
        with showing_progress(Console(stderr=True), "Gateway image") as progress:
            tag = asyncio.run(build(load(None, os.environ).build, version, progress))
    except CellblockError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{tag}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
