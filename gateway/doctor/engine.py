"""Of the engine: what it is, whether it has the kernel image, and what a container really gets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.doctor.findings import Finding, Level
from gateway.doctor.machine import look_at_disk
from gateway.doctor.versions import DOCKER_HOLES, RUNC_HOLES, Holes, is_older
from sessions.errors import CellblockError, EngineUnavailable, SetUpFailed
from sessions.languages import BASH_KERNEL
from sessions.settings import BuildSettings, EngineSettings, Limits

if TYPE_CHECKING:
    from sessions.provisioners.docker.engine import DockerEngine, EngineFacts

_ENGINE_FLOOR = "20.10"


async def look_at_engine(
    engine: EngineSettings,
    build: BuildSettings,
    limits: Limits,
    data_dir: Path | None = None,
    *,
    kernel_names: Collection[str] = (),
) -> list[Finding]:
    """All of it; `kernel_names` are the kernelspecs of the configured languages.

    A socket for a sandbox is made in `data_dir`, if that is there and may be written to.
    """
    if engine.name == "process":
        found = [_no_isolation("`engine.name` is `process`.")]
        if BASH_KERNEL in kernel_names:
            found.append(bash_finding(shutil.which("bash")))
        return found
    return await _docker_findings(engine, build, limits, data_dir)


def engine_findings(facts: EngineFacts, settings: EngineSettings) -> Iterator[Finding]:
    """What the engine says of itself, judged. Pure."""
    if is_older(facts.version, _ENGINE_FLOOR):
        what = f"Docker {facts.version} is older than {_ENGINE_FLOOR} and cannot isolate as Cellblock asks"
        yield Finding("engine", Level.FAIL, what, "Install a newer Docker.")
    else:
        name = f"Docker {facts.version}, cgroup v{facts.cgroup_version}"
        yield _judged("engine", name, facts.version, DOCKER_HOLES)
    if not facts.shares_host:
        yield Finding(
            "engine host",
            Level.FAIL,
            "DOCKER_HOST names an engine on another machine, where sandboxes cannot reach this gateway's sockets",
            "Run the gateway on the machine that the engine is on.",
        )
    name = f"runc {facts.runc_build or facts.runc_version}" if facts.runc_version else "runc of unknown version"
    yield _judged("runc", name, facts.runc_version, RUNC_HOLES)
    if settings.runtime and settings.runtime not in facts.runtimes:
        what = f"The engine has no runtime {settings.runtime!r}; it has {', '.join(facts.runtimes)}"
        yield Finding("runtime", Level.FAIL, what, "Add it to Docker's daemon.json, or empty `engine.runtime`.")
    if not facts.seccomp:
        what = "Docker runs containers without its seccomp profile"
        yield Finding("seccomp", Level.FAIL, what, "Remove `seccomp-profile: unconfined` from Docker's daemon.json.")
    for limit in facts.unapplied_limits:
        what = f"The kernel of this machine cannot limit the {limit} of a container"
        yield Finding("limits", Level.FAIL, what, "Turn on the cgroup controllers that `docker info` warns of.")


def zygote_finding(obstacle: str) -> Finding:
    """Whether kernels are forked by a zygote, and if not, what the `obstacle` costs. Pure."""
    if not obstacle:
        what = "kernels are forked into their sandboxes from outside; where that fails, `/readyz` has a warning"
    else:
        what = f"none, since {obstacle}: sandboxes start more slowly and take more memory"
    return Finding("zygote", Level.OK, what)


def bash_finding(place: str | None) -> Finding:
    """Whether the process engine's kernels find bash. Pure."""
    if place is None:
        what_to_do = "Install bash, or leave it out of `languages`."
        return Finding("bash", Level.WARN, "There is no bash on the PATH, so that its runs fail", what_to_do)
    return Finding("bash", Level.OK, place)


def _judged(part: str, name: str, installed: str, holes: Holes) -> Finding:
    """A warning and no more where the number is too old: it does not tell what a distribution has mended."""
    if not holes.are_open(installed):
        return Finding(part, Level.OK, name)
    return Finding(
        part,
        Level.WARN,
        f"{name}: {holes.what}, unless your distribution has mended this version",
        "Update Docker and runc. Debian and others put fixes into old versions and keep the number: look up "
        f"{holes.look_up} in your distribution's security tracker, for Debian https://security-tracker.debian.org.",
    )


async def _docker_findings(
    engine: EngineSettings, build: BuildSettings, limits: Limits, data_dir: Path | None
) -> list[Finding]:
    from sessions.provisioners.docker.engine import NOT_ALLOWED, DockerEngine
    from sessions.provisioners.docker.zygote import obstacle

    connection = DockerEngine(threads=1)
    try:
        facts = await connection.facts()
        findings = [*engine_findings(facts, engine), zygote_finding(obstacle(engine, facts))]
        if facts.shares_host and facts.root_dir:
            findings.append(look_at_disk("engine disk", Path(facts.root_dir)))
        image, finding = await _image(connection, engine, build)
        findings.append(finding)
        if image is not None:
            own = data_dir if data_dir is not None and os.access(data_dir, os.W_OK) else None
            findings += await _sandbox_findings(connection, replace(engine, kernel_image=image), limits, own)
    except EngineUnavailable as error:
        what, what_to_do = str(error), ""
        if what == NOT_ALLOWED:
            what, what_to_do = _halves(what)
        if engine.name == "auto":
            return [_no_isolation(f"{what.removesuffix('.')}.", what_to_do)]
        start = "Start Docker; as root on Debian `make serve` does so."
        return [Finding("engine", Level.FAIL, what, what_to_do or start)]
    finally:
        await connection.close()
    return findings


async def _image(connection: DockerEngine, engine: EngineSettings, build: BuildSettings) -> tuple[str | None, Finding]:
    """The kernel image that would be used, if the engine has it, and whether it is of these sources."""
    from sessions.provisioners.image.build import find_kernel_image, is_of_these_sources

    try:
        image = await find_kernel_image(build, connection, named=engine.kernel_image)
        is_current = image is not None and await is_of_these_sources(build, connection, image)
    except EngineUnavailable:
        raise
    except CellblockError as error:
        return None, Finding(
            "kernel image", Level.FAIL, str(error), "Correct the section `build` of the configuration."
        )
    if image is None:
        wanted = f"The image {engine.kernel_image}" if engine.kernel_image else "The kernel image"
        what_to_do = "Run `cellblock build`; `cellblock serve` does so by itself when `engine.kernel_image` is empty."
        return None, Finding("kernel image", Level.WARN, f"{wanted} is not there yet", what_to_do)
    if not is_current:
        what = f"{image}, which `engine.kernel_image` names, was not built from these sources and settings"
        what_to_do = "Run `cellblock build` and name the image that it prints, or leave `engine.kernel_image` empty."
        return image, Finding("kernel image", Level.WARN, what, what_to_do)
    return image, Finding("kernel image", Level.OK, f"{image}, built from these sources")


async def _sandbox_findings(
    connection: DockerEngine, engine: EngineSettings, limits: Limits, data_dir: Path | None
) -> list[Finding]:
    """Start one container and read back what it got."""
    from sessions.provisioners.docker.readback import read_back

    try:
        phrases = await read_back(connection, engine, limits, data_dir)
    except SetUpFailed as error:
        return [Finding("data directory", Level.FAIL, *_halves(str(error)))]
    except EngineUnavailable as error:
        return [Finding("sandbox", Level.FAIL, str(error), "Try `docker run` with the image by hand.")]
    if not phrases:
        return [Finding("sandbox", Level.OK, "a container gets every limit and protection that is asked for")]
    return [
        Finding(
            "sandbox",
            Level.FAIL,
            f"In a container, {phrase}",
            "Do not let code in that you have not read before this is mended.",
        )
        for phrase in phrases
    ]


def _halves(error: str) -> tuple[str, str]:
    """What is wrong, and what to do about it, of a sentence that has a colon between them."""
    what, _, what_to_do = error.partition(": ")
    return what, what_to_do[:1].upper() + what_to_do[1:]


def _no_isolation(reason: str, what_to_do: str = "") -> Finding:
    return Finding(
        "engine",
        Level.WARN,
        f"{reason} Code then runs as plain processes, which isolates nothing.",
        what_to_do
        or "Install and start Docker, and leave `engine.name` at `auto`, before letting code in that you have not "
        "read.",
    )
