"""What the configuration may say: one frozen struct per section of config.yaml, with its defaults and bounds.

It reads nothing; `gateway.config.loader` reads the file and the environment, and checks what no single key can tell.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

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


def is_size(kind: object) -> bool:
    """Whether a key of this type is given in bytes, and may be written as a person would."""
    return any(isinstance(meta, Meta) and bool(meta.extra) for meta in getattr(kind, "__metadata__", ()))


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of the configuration."""

    title: ClassVar[str]


class ServerSection(Section, frozen=True):
    """Where the gateway listens and what it calls itself. `public_url` and `data_dir` are found out when empty."""

    title: ClassVar[str] = "server"
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    public_url: str = ""
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    data_dir: str = ""


class AuthSection(Section, frozen=True):
    """Who may use this gateway. `required` null means: exactly when there are tokens."""

    title: ClassVar[str] = "auth"
    required: bool | None = None
    tokens: tuple[Token, ...] = ()

    @property
    def is_required(self) -> bool:
        """Whether a request without a token is refused."""
        return bool(self.tokens) if self.required is None else self.required


class DatabaseSection(Section, frozen=True):
    """`url` empty means the embedded PostgreSQL."""

    title: ClassVar[str] = "database"
    url: str = ""


class EngineSection(Section, frozen=True):
    """How containers run; see `sessions.model.EngineSettings`."""

    title: ClassVar[str] = "engine"
    name: str = _ENGINE.name
    kernel_image: str = _ENGINE.kernel_image
    network: str = _ENGINE.network
    runtime: str = _ENGINE.runtime
    sandbox_log: bool = _ENGINE.sandbox_log

    def settings(self) -> EngineSettings:
        """The engine's own record."""
        return EngineSettings(**msgspec.structs.asdict(self))


class BuildSection(Section, frozen=True):
    """How the kernel image is made; see `sessions.model.BuildSettings`."""

    title: ClassVar[str] = "build"
    base: str = _BUILD.base
    dependencies: tuple[str, ...] = DEFAULT_DEPENDENCIES
    preload: tuple[str, ...] = DEFAULT_PRELOAD
    constraints: str = _BUILD.constraints
    proxy: str = _BUILD.proxy
    ca_bundle: str = _BUILD.ca_bundle
    network: str = _BUILD.network

    def settings(self) -> BuildSettings:
        """The engine's own record."""
        return BuildSettings(**msgspec.structs.asdict(self))


class PoolSection(Section, frozen=True):
    """`size` kernels are kept warm; `max` sandboxes may exist at once."""

    title: ClassVar[str] = "pool"
    size: Annotated[int, Meta(ge=0)] = _POOL.size
    max: Positive = _POOL.max


class SessionsSection(Section, frozen=True):
    """How long a session's kernel is kept, in seconds, and how many a tenant may have."""

    title: ClassVar[str] = "sessions"
    idle_timeout: Seconds = _SESSIONS.idle_timeout_s
    max_lifetime: Seconds = _SESSIONS.max_lifetime_s
    max_per_tenant: Positive = _SESSIONS.max_per_tenant

    def limits(self) -> SessionLimits:
        """The engine's own record, whose names carry the units."""
        return SessionLimits(self.idle_timeout, self.max_lifetime, self.max_per_tenant)


class LimitsSection(Section, frozen=True):
    """What one run may use: `sessions.settings.Limits`, with times in seconds and sizes in bytes."""

    title: ClassVar[str] = "limits"
    timeout: Seconds = _LIMITS.timeout_s
    max_timeout: Seconds = _LIMITS.max_timeout_s
    memory: Size = _LIMITS.memory_bytes
    cpus: Annotated[float, Meta(gt=0, le=1024)] = _LIMITS.cpus
    pids: Positive = _LIMITS.pids
    disk: Size = _LIMITS.disk_bytes
    inodes: Positive = _LIMITS.inodes
    nofile: Positive = _LIMITS.nofile
    output_bytes: OutputSize = _LIMITS.output_bytes
    image_bytes: ArtifactSize = _LIMITS.image_bytes
    image_count: Annotated[int, Meta(ge=0)] = _LIMITS.image_count
    image_pixels: Positive = _LIMITS.image_pixels
    file_bytes: ArtifactSize = _LIMITS.file_bytes
    file_count: Annotated[int, Meta(ge=0)] = _LIMITS.file_count
    request_bytes: RequestSize = _LIMITS.request_bytes
    queue: Annotated[int, Meta(ge=0)] = _LIMITS.queue

    def limits(self) -> Limits:
        """The engine's own record, whose names carry the units."""
        renamed = {"timeout": "timeout_s", "max_timeout": "max_timeout_s"}
        renamed |= {"memory": "memory_bytes", "disk": "disk_bytes"}
        return Limits(**{renamed.get(key, key): value for key, value in msgspec.structs.asdict(self).items()})


class RetentionSection(Section, frozen=True):
    """Runs older than `days` are removed; 0 keeps them for ever."""

    title: ClassVar[str] = "retention"
    days: Annotated[float, Meta(ge=0, le=36_500)] = 30.0


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
