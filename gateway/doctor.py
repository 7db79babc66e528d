"""`cellblock doctor`: what could keep Cellblock from running code safely here, each with what to do about it.

It looks and changes nothing. Printing is the command line's business.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gateway.host.descriptors import FEWEST_CONNECTIONS, MOST_CONNECTIONS, connections_within, descriptors_for
from sessions.errors import CellblockError, EngineUnavailable, SetUpFailed
from sessions.settings import BuildSettings, EngineSettings, Limits

if TYPE_CHECKING:
    from sessions.provisioners.docker.engine import DockerEngine, EngineFacts

Ping = Callable[[], Awaitable[None]]

_PING_TIMEOUT_S = 30.0
_ENGINE_FLOOR = "20.10"
_PACKAGE_FLOORS = {
    "tornado": ("6.5.8", "earlier ones have known vulnerabilities"),
    "ipykernel": ("7.4", "7.0 to 7.3 can wedge the shell channel"),
    "jupyter_client": ("8.9", "messages are built and signed with it"),
}


@dataclass(frozen=True, slots=True)
class _Holes:
    """Known holes, and where they are closed: from the last of `floors` on, and in older lines from their own floor."""

    floors: tuple[str, ...]
    what: str
    look_up: str

    def are_open(self, installed: str) -> bool:
        """Whether this version, taken by its number alone, has them."""
        line = _numbers(installed)[:2]
        own = [floor for floor in self.floors if _numbers(floor)[:2] == line]
        return is_older(installed, own[0] if own else self.floors[-1])


# As of November 2025. Look here again with every release: https://github.com/opencontainers/runc/security/advisories
_RUNC_HOLES = _Holes(
    ("1.2.8", "1.3.3", "1.4"),
    "a container can escape before runc 1.2.8 and 1.3.3 (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881)",
    "CVE-2025-31133",
)
# As of January 2024; later ones are about plugins and firewalls that sandboxes do not depend on.
# https://github.com/moby/moby/security/advisories
_DOCKER_HOLES = _Holes(
    ("24.0.9", "25.0.2"),
    "before Docker 24.0.9 and 25.0.2 what is built can be poisoned through the build cache (CVE-2024-24557)",
    "CVE-2024-24557",
)


class Level(StrEnum):
    """How bad a finding is. `fail` means that Cellblock will not run code, or not as safely as it says."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `what_to_do` is empty where all is well."""

    name: str
    level: Level
    what: str
    what_to_do: str = ""


async def examine(
    engine: EngineSettings, build: BuildSettings, limits: Limits, ping: Ping | None = None, data_dir: Path | None = None
) -> list[Finding]:
    """Look at everything; a failing check is a finding, never an exception.

    `ping` asks the database. A socket for a sandbox is made in `data_dir`, if that is there and may be written to.
    """
    findings = list(package_findings())
    if engine.name == "process":
        findings.append(_no_isolation("`engine.name` is `process`."))
    else:
        findings += await _docker_findings(engine, build, limits, data_dir)
    if ping is not None:
        findings.append(await _database_finding(ping))
    return findings


def package_findings() -> Iterator[Finding]:
    """The libraries whose old versions are known to be unsafe or unreliable here."""
    for package, (floor, reason) in _PACKAGE_FLOORS.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            yield Finding(
                package, Level.FAIL, f"{package} is not installed", f"Run `pip install '{package}>={floor}'`."
            )
            continue
        if is_older(installed, floor):
            what = f"{package} {installed} is older than {floor}: {reason}"
            yield Finding(package, Level.FAIL, what, f"Run `pip install '{package}>={floor}'`.")
        else:
            yield Finding(package, Level.OK, f"{package} {installed}")


def descriptor_finding(limit: int, sandboxes: int) -> Finding:
    """Whether a gateway with so many sandboxes may open files enough. Pure."""
    connections = connections_within(limit, sandboxes)
    if connections == MOST_CONNECTIONS:
        return Finding("open files", Level.OK, f"a process may have {limit} open")
    least = descriptors_for(FEWEST_CONNECTIONS, sandboxes)
    return Finding(
        "open files",
        Level.WARN if limit >= least else Level.FAIL,
        f"A process may have {limit} files open, which does for {connections} connections, not for {MOST_CONNECTIONS}"
        if limit >= least
        else f"A process may have {limit} files open; {sandboxes} sandboxes and the gateway need {least}",
        f"Raise the limit to {descriptors_for(MOST_CONNECTIONS, sandboxes)}: `ulimit -n`, or LimitNOFILE in the "
        "gateway's systemd unit.",
    )


def engine_findings(facts: EngineFacts, settings: EngineSettings) -> Iterator[Finding]:
    """What the engine says of itself, judged. Pure."""
    if is_older(facts.version, _ENGINE_FLOOR):
        what = f"Docker {facts.version} is older than {_ENGINE_FLOOR} and cannot isolate as Cellblock asks"
        yield Finding("engine", Level.FAIL, what, "Install a newer Docker.")
    else:
        name = f"Docker {facts.version}, cgroup v{facts.cgroup_version}"
        yield _judged("engine", name, facts.version, _DOCKER_HOLES)
    if not facts.shares_host:
        yield Finding(
            "engine host",
            Level.FAIL,
            "DOCKER_HOST names an engine on another machine, where sandboxes cannot reach this gateway's sockets",
            "Run the gateway on the machine that the engine is on.",
        )
    name = f"runc {facts.runc_build or facts.runc_version}" if facts.runc_version else "runc of unknown version"
    yield _judged("runc", name, facts.runc_version, _RUNC_HOLES)
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


def is_older(installed: str, floor: str) -> bool:
    """Compare the numbers that versions start with: `20.10.24+dfsg1` is not older than `20.10`."""
    return _numbers(installed) < _numbers(floor)


def _numbers(text: str) -> tuple[int, ...]:
    start = re.match(r"[0-9]+(\.[0-9]+)*", text)
    return tuple(map(int, start.group().split("."))) if start else ()


def _judged(part: str, name: str, installed: str, holes: _Holes) -> Finding:
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
    from sessions.provisioners.docker.engine import DockerEngine
    from sessions.provisioners.docker.zygote import obstacle

    connection = DockerEngine(threads=1)
    try:
        facts = await connection.facts()
        findings = [*engine_findings(facts, engine), zygote_finding(obstacle(engine, facts))]
        image, finding = await _image(connection, engine, build)
        findings.append(finding)
        if image is not None:
            own = data_dir if data_dir is not None and os.access(data_dir, os.W_OK) else None
            findings += await _sandbox_findings(connection, replace(engine, kernel_image=image), limits, own)
    except EngineUnavailable as error:
        if engine.name == "auto":
            return [_no_isolation(str(error))]
        return [Finding("engine", Level.FAIL, str(error), "Start Docker; as root on Debian `make serve` does so.")]
    finally:
        await connection.close()
    return findings


async def _image(connection: DockerEngine, engine: EngineSettings, build: BuildSettings) -> tuple[str | None, Finding]:
    """The kernel image that would be used, if the engine has it."""
    from sessions.provisioners.image.build import find_kernel_image

    try:
        image = await find_kernel_image(build, connection, named=engine.kernel_image)
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
    return image, Finding("kernel image", Level.OK, image)


async def _sandbox_findings(
    connection: DockerEngine, engine: EngineSettings, limits: Limits, data_dir: Path | None
) -> list[Finding]:
    """Start one container and read back what it got."""
    from sessions.provisioners.docker.readback import read_back

    try:
        phrases = await read_back(connection, engine, limits, data_dir)
    except SetUpFailed as error:
        what, _, what_to_do = str(error).partition(": ")
        return [Finding("data directory", Level.FAIL, what, what_to_do[:1].upper() + what_to_do[1:])]
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


async def _database_finding(ping: Ping) -> Finding:
    try:
        await asyncio.wait_for(ping(), _PING_TIMEOUT_S)
    except (CellblockError, TimeoutError) as error:
        what = str(error) or "The database does not answer."
        return Finding("database", Level.FAIL, what, "Start it, or correct `database.url` (empty: the embedded one).")
    return Finding("database", Level.OK, "it answers")


def _no_isolation(reason: str) -> Finding:
    return Finding(
        "engine",
        Level.WARN,
        f"{reason} Code then runs as plain processes, which isolates nothing.",
        "Install and start Docker, and leave `engine.name` at `auto`, before letting code in that you have not read.",
    )
