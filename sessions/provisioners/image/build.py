"""The kernel image: what goes into it, the tag that follows from that, and its build.

The base image is made in base.py; the steps of the build are in `Dockerfile.kernel`, which is at the top of the
repository, and linked to here so that it is part of the installed package.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import kernel_image
from sessions.errors import Misconfigured, SetUpFailed
from sessions.provisioners.docker.engine import DockerEngine, image_exists
from sessions.provisioners.image.base import DEBIAN, debian_base_tag, ensure_base
from sessions.provisioners.image.build_stream import follow
from sessions.provisioners.image.requirements import constraints, requirements
from sessions.provisioners.programs import Progress
from sessions.settings import BuildSettings

REPOSITORY = "cellblock-kernel"

_HERE = Path(__file__).parent
_TAG_LABEL = "cellblock.tag"
"""What an image was called when it was built: it says so under other names and on other machines too."""

_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_REGISTRY_TIMEOUT_S = 20.0
_PROXY_ARGUMENTS = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


async def find_kernel_image(settings: BuildSettings, engine: DockerEngine, *, named: str = "") -> str | None:
    """The image called `named`, else the one that these settings ask for, when the engine has it.

    Raises EngineUnavailable, Misconfigured, SetUpFailed.
    """
    if named:
        return named if await engine.call(lambda client: image_exists(client, named)) else None
    for tag in await _wanted_tags(settings, engine):
        if await engine.call(lambda client, tag=tag: image_exists(client, tag)):  # type: ignore[misc]
            return tag
    return None


async def is_of_these_sources(settings: BuildSettings, engine: DockerEngine, image: str) -> bool:
    """Whether an image that the engine has, whatever its name, is what these settings ask for. Raises as above."""
    said = await engine.call(lambda client: client.inspect_image(image))  # type: ignore[no-untyped-call]
    names = {*(said.get("RepoTags") or ()), (said["Config"].get("Labels") or {}).get(_TAG_LABEL)}
    return not names.isdisjoint(await _wanted_tags(settings, engine))


async def _wanted_tags(settings: BuildSettings, engine: DockerEngine) -> list[str]:
    """The tag that these settings ask for, and where their base is not at hand, that of the same on Debian's."""
    content = image_content(settings)
    tags = [kernel_image_tag(content, _base_identity(settings.base))]
    if settings.base != DEBIAN and not await engine.call(lambda client: image_exists(client, settings.base)):
        tags.append(kernel_image_tag(content, debian_base_tag()))
    return tags


async def ensure_kernel_image(settings: BuildSettings, progress: Progress, *, rebuild: bool = False) -> str:
    """Build the kernel image unless it is there, and then without a line to `progress`; returns its tag.

    `rebuild` builds it anew from the first step, for newer packages. Raises SetUpFailed, Misconfigured,
    EngineUnavailable.
    """
    engine = DockerEngine(threads=2, timeout_s=_REGISTRY_TIMEOUT_S)
    try:
        found = None if rebuild else await find_kernel_image(settings, engine)
        if found is not None:
            return found
        base = await ensure_base(engine, settings, progress)
        content = image_content(settings)
        tag = kernel_image_tag(content, _base_identity(base))
        progress(f"Building {tag} on {base}")
        context = build_context({**content, "inputs/ca.pem": ca_bundle(settings)})
        await follow(
            engine,
            lambda client: client.build(
                fileobj=io.BytesIO(context),
                custom_context=True,
                dockerfile="Dockerfile",
                tag=tag,
                buildargs=build_arguments(settings, base),
                network_mode=settings.network,
                nocache=rebuild,
                rm=True,
                forcerm=True,
                decode=True,
                use_config_proxy=False,
                labels={"cellblock.image": "kernel", _TAG_LABEL: tag},
            ),
            progress,
            failed="The kernel image could not be built",
        )
    finally:
        await engine.close()
    progress(f"Built {tag}")
    return tag


async def size_of(image: str) -> int:
    """The bytes of an image that the engine has. Raises EngineUnavailable."""
    engine = DockerEngine(threads=1)
    try:
        return int(await engine.call(lambda client: client.inspect_image(image)["Size"]))  # type: ignore[no-untyped-call]
    finally:
        await engine.close()


def image_content(settings: BuildSettings) -> Mapping[str, bytes]:
    """Everything that decides what the image holds, by path in the build context. Raises Misconfigured, SetUpFailed."""
    for name in settings.preload:
        if not all(part.isidentifier() for part in name.split(".")):
            raise Misconfigured(f"`build.preload` holds {name!r}, which is not the name of a Python module.")
    content = {
        "Dockerfile": (_HERE / "Dockerfile").read_bytes(),
        "inputs/requirements.txt": requirements(settings),
        "inputs/constraints.txt": constraints(settings),
        "inputs/preload.txt": "".join(f"{line}\n" for line in settings.preload).encode(),
    }
    content.update(_kernel_sources())
    return content


def kernel_image_tag(content: Mapping[str, bytes], base: str) -> str:
    """`cellblock-kernel:<12 hex digits>` of the content and the base; how it is fetched does not count."""
    digest = hashlib.sha256(base.encode())
    for path in sorted(content):
        digest.update(f"\0{path}\0{len(content[path])}\0".encode())
        digest.update(content[path])
    return f"{REPOSITORY}:{digest.hexdigest()[:12]}"


def build_context(content: Mapping[str, bytes]) -> bytes:
    """A tar archive for Docker's builder. The same content gives the same bytes, whatever this machine's umask is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folders = {str(parent) for path in content for parent in Path(path).parents} - {"."}
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for path in sorted(content):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content[path]), 0o644
            archive.addfile(entry, io.BytesIO(content[path]))
    return buffer.getvalue()


def _kernel_sources() -> Iterator[tuple[str, bytes]]:
    root = Path(kernel_image.__file__).parent
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"kernel_image/{path.relative_to(root).as_posix()}", path.read_bytes()


def _base_identity(base: str) -> str:
    return debian_base_tag() if base == DEBIAN else base


def build_arguments(settings: BuildSettings, base: str) -> dict[str, str]:
    """Docker keeps the proxy variables out of the finished image by itself, and out of its history."""
    arguments = {"BASE": base}
    if settings.proxy:
        arguments.update(dict.fromkeys(_PROXY_ARGUMENTS, settings.proxy))
    return arguments


def ca_bundle(settings: BuildSettings) -> bytes:
    """The certificates that pip trusts during the build: the configured file, or this machine's; may be empty."""
    if settings.ca_bundle:
        try:
            return Path(settings.ca_bundle).expanduser().read_bytes()
        except OSError as error:
            raise SetUpFailed(
                f"The file that `build.ca_bundle` names cannot be read ({error.strerror}): correct or empty it."
            ) from error
    for variable in _CA_VARIABLES:
        path = Path(os.environ.get(variable) or "/nonexistent")
        if path.is_file():
            return path.read_bytes()
    return b""
