"""What the configuration may say: one frozen struct per section of config.yaml, with its defaults and bounds.

It reads nothing; `gateway.config.loader` reads the file and the environment, and checks what no single key can tell.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_origin

import msgspec
from msgspec import Meta, Struct, field

from gateway.auth import Token
from sessions.kernels.pool_policy import PoolSettings
from sessions.provisioners.image.default_packages import DEFAULT_DEPENDENCIES, DEFAULT_PRELOAD
from sessions.settings import BuildSettings, EngineSettings, Limits, SessionLimits

_LIMITS = Limits()
_SESSIONS = SessionLimits()
_ENGINE = EngineSettings()
_BUILD = BuildSettings()
_POOL = PoolSettings()
ENGINES = ("auto", "docker", "process")

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=30 * 86_400)]
Size = Annotated[int, Meta(ge=1, extra={"human": True})]
"""Bytes; "512M", "1.5 GiB" and plain numbers are understood, with K = 1024 as Docker has it."""

OutputSize = Annotated[int, Meta(ge=1, le=8 << 20, extra={"human": True})]
ArtifactSize = Annotated[int, Meta(ge=1, le=64 << 20, extra={"human": True})]
RequestSize = Annotated[int, Meta(ge=1, le=32 << 20, extra={"human": True})]
"""What passes between gateway and supervisor as one message, and is held in memory at both ends."""


def about(description: str) -> Meta:
    """What a key means, in one sentence: for the reference in docs/configuration.md."""
    return Meta(description=description)


def bare_type(kind: Any) -> Any:
    """The type of a key without its bounds and its description."""
    return kind.__origin__ if get_origin(kind) is Annotated else kind


def is_size(kind: object) -> bool:
    """Whether a key of this type is given in bytes, and may be written as a person would."""
    return any(isinstance(meta, Meta) and bool(meta.extra) for meta in getattr(kind, "__metadata__", ()))


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of the configuration."""

    title: ClassVar[str]


class ServerSection(Section, frozen=True):
    """Where the gateway listens and what it calls itself. `public_url` and `data_dir` are found out when empty."""

    title: ClassVar[str] = "server"
    host: Annotated[
        str,
        about("The address to listen on; anything beyond loopback needs `auth.tokens` and the docker engine."),
    ] = "127.0.0.1"
    port: Annotated[
        Annotated[int, Meta(ge=0, le=65_535)],
        about("The port to listen on; the variable `PORT` sets it too."),
    ] = 8000
    public_url: Annotated[
        str,
        about("What image and file URLs start with, e.g. `https://cells.example.org`; empty: the request's own host."),
    ] = ""
    allowed_origins: Annotated[
        tuple[str, ...],
        about("Web pages that may use this server, e.g. `[https://chat.example.org]`."),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        about("Further host names of this server, where it listens on loopback behind a proxy."),
    ] = ()
    data_dir: Annotated[
        str,
        about("Embedded database and sockets; empty: `/var/lib/cellblock` for root, else `~/.local/share/cellblock`."),
    ] = ""


class AuthSection(Section, frozen=True):
    """Who may use this gateway. `required` null means: exactly when there are tokens."""

    title: ClassVar[str] = "auth"
    required: Annotated[
        bool | None,
        about("Whether requests need a token; null: exactly when there are tokens."),
    ] = None
    tokens: Annotated[
        tuple[Token, ...],
        about("Tokens by their SHA-256, each with a tenant and a name; see the comments in `config.yaml`."),
    ] = ()

    @property
    def is_required(self) -> bool:
        """Whether a request without a token is refused."""
        return bool(self.tokens) if self.required is None else self.required


class DatabaseSection(Section, frozen=True):
    """`url` empty means the embedded PostgreSQL."""

    title: ClassVar[str] = "database"
    url: Annotated[
        str,
        about("`postgresql://user:password@host:5432/cellblock`; empty: an embedded PostgreSQL in `server.data_dir`."),
    ] = ""


class EngineSection(Section, frozen=True):
    """How containers run; see `sessions.settings.EngineSettings`."""

    title: ClassVar[str] = "engine"
    name: Annotated[
        str,
        about("`docker`, `process` (no isolation, loopback only), or `auto`: docker where it answers."),
    ] = _ENGINE.name
    kernel_image: Annotated[
        str,
        about("The kernel image; empty: the one that `build` describes, built when it is missing."),
    ] = _ENGINE.kernel_image
    network: Annotated[
        str,
        about("`none`, or a Docker network that sandboxes may use."),
    ] = _ENGINE.network
    runtime: Annotated[
        str,
        about("The container runtime, e.g. `runsc` for gVisor; empty: the engine's own."),
    ] = _ENGINE.runtime
    sandbox_log: Annotated[
        bool,
        about("Whether `docker logs` shows what a sandbox's supervisor logs; see [debugging](debugging.md)."),
    ] = _ENGINE.sandbox_log

    def settings(self) -> EngineSettings:
        """The engine's own record."""
        return EngineSettings(**msgspec.structs.asdict(self))


class BuildSection(Section, frozen=True):
    """How the kernel image is made; see `sessions.settings.BuildSettings`."""

    title: ClassVar[str] = "build"
    base: Annotated[
        str,
        about("Any glibc image with Python 3.11 or newer; `debian` makes one from the Debian mirror."),
    ] = _BUILD.base
    dependencies: Annotated[
        tuple[str, ...],
        about("Packages in the image, as pip requirements."),
    ] = DEFAULT_DEPENDENCIES
    preload: Annotated[
        tuple[str, ...],
        about("Modules that are imported once per container, before kernels are forked from it."),
    ] = DEFAULT_PRELOAD
    constraints: Annotated[
        str,
        about("A file of versions for pip; `none`: the newest ones; empty: the versions of this release."),
    ] = _BUILD.constraints
    proxy: Annotated[
        str,
        about("The HTTP proxy of the build."),
    ] = _BUILD.proxy
    ca_bundle: Annotated[
        str,
        about("Certificates that pip, and pip alone, trusts during the build."),
    ] = _BUILD.ca_bundle
    network: Annotated[
        str,
        about("The Docker network of the build."),
    ] = _BUILD.network

    def settings(self) -> BuildSettings:
        """The engine's own record."""
        return BuildSettings(**msgspec.structs.asdict(self))


class PoolSection(Section, frozen=True):
    """`size` kernels are kept warm; `max` sandboxes may exist at once."""

    title: ClassVar[str] = "pool"
    size: Annotated[
        Annotated[int, Meta(ge=0)],
        about("Kernels that are kept warm."),
    ] = _POOL.size
    max: Annotated[
        Positive,
        about("Containers at once, those at work and those of sessions included."),
    ] = _POOL.max


class SessionsSection(Section, frozen=True):
    """How long a session's kernel is kept, in seconds, and how many a tenant may have."""

    title: ClassVar[str] = "sessions"
    idle_timeout: Annotated[
        Seconds,
        about("A session that is not used for this long ends."),
    ] = _SESSIONS.idle_timeout_s
    max_lifetime: Annotated[
        Seconds,
        about("A session ends at this age."),
    ] = _SESSIONS.max_lifetime_s
    max_per_tenant: Annotated[
        Positive,
        about("Sessions that a tenant may have at once."),
    ] = _SESSIONS.max_per_tenant

    def limits(self) -> SessionLimits:
        """The engine's own record, whose names carry the units."""
        return SessionLimits(self.idle_timeout, self.max_lifetime, self.max_per_tenant)


class LimitsSection(Section, frozen=True):
    """What one run may use: `sessions.settings.Limits`, with times in seconds and sizes in bytes."""

    title: ClassVar[str] = "limits"
    timeout: Annotated[
        Seconds,
        about("The time limit of a run whose request names none."),
    ] = _LIMITS.timeout_s
    max_timeout: Annotated[
        Seconds,
        about("The longest time limit that a request may name."),
    ] = _LIMITS.max_timeout_s
    memory: Annotated[
        Size,
        about("The memory of a container."),
    ] = _LIMITS.memory_bytes
    cpus: Annotated[
        Annotated[float, Meta(gt=0, le=1024)],
        about("The processors of a container."),
    ] = _LIMITS.cpus
    pids: Annotated[
        Positive,
        about("Processes and threads in a container."),
    ] = _LIMITS.pids
    disk: Annotated[
        Size,
        about("The writable disk of a container."),
    ] = _LIMITS.disk_bytes
    inodes: Annotated[
        Positive,
        about("Files and directories on that disk."),
    ] = _LIMITS.inodes
    nofile: Annotated[
        Positive,
        about("Open files of a process."),
    ] = _LIMITS.nofile
    output_bytes: Annotated[
        OutputSize,
        about("The text that a run may print."),
    ] = _LIMITS.output_bytes
    image_bytes: Annotated[
        ArtifactSize,
        about("One image of a run."),
    ] = _LIMITS.image_bytes
    image_count: Annotated[
        Annotated[int, Meta(ge=0)],
        about("Images of a run."),
    ] = _LIMITS.image_count
    image_pixels: Annotated[
        Positive,
        about("Pixels of one image."),
    ] = _LIMITS.image_pixels
    file_bytes: Annotated[
        ArtifactSize,
        about("One file of a run."),
    ] = _LIMITS.file_bytes
    file_count: Annotated[
        Annotated[int, Meta(ge=0)],
        about("Files of a run."),
    ] = _LIMITS.file_count
    request_bytes: Annotated[
        RequestSize,
        about("The body of a request."),
    ] = _LIMITS.request_bytes
    queue: Annotated[
        Annotated[int, Meta(ge=0)],
        about("Requests that wait for a sandbox; the next one gets 429."),
    ] = _LIMITS.queue

    def limits(self) -> Limits:
        """The engine's own record, whose names carry the units."""
        renamed = {"timeout": "timeout_s", "max_timeout": "max_timeout_s"}
        renamed |= {"memory": "memory_bytes", "disk": "disk_bytes"}
        return Limits(**{renamed.get(key, key): value for key, value in msgspec.structs.asdict(self).items()})


class RetentionSection(Section, frozen=True):
    """Runs older than `days` are removed; 0 keeps them for ever."""

    title: ClassVar[str] = "retention"
    days: Annotated[
        Annotated[float, Meta(ge=0, le=36_500)],
        about("Runs that are older are removed; 0 keeps everything."),
    ] = 30.0


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration, checked. `languages` maps what clients ask for to a Jupyter kernelspec name."""

    server: ServerSection = ServerSection()
    auth: AuthSection = AuthSection()
    database: DatabaseSection = DatabaseSection()
    engine: EngineSection = EngineSection()
    languages: dict[str, str] = field(default_factory=lambda: {"python": "python3"})
    build: BuildSection = BuildSection()
    pool: PoolSection = PoolSection()
    sessions: SessionsSection = SessionsSection()
    limits: LimitsSection = LimitsSection()
    retention: RetentionSection = RetentionSection()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        return is_loopback(self.server.host)

    def data_dir(self, environ: Mapping[str, str]) -> Path:
        """Where the embedded database, sockets and the gateway's own id are kept."""
        if self.server.data_dir:
            return Path(self.server.data_dir).expanduser().absolute()
        if os.geteuid() == 0:
            return Path("/var/lib/cellblock")
        return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "cellblock"


SECTIONS: Mapping[str, type[Section]] = {
    section.title: section
    for section in (
        ServerSection,
        AuthSection,
        DatabaseSection,
        EngineSection,
        BuildSection,
        PoolSection,
        SessionsSection,
        LimitsSection,
        RetentionSection,
    )
}


def is_loopback(host: str) -> bool:
    """Whether this listening address can be reached from this machine only. Names other than localhost count as no."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
