"""What the configuration may say: frozen structs with defaults, bounds, and below each key a string with its meaning.

The sections that the engine reads are its own records, in `sessions.settings`. `gateway.config.loader` reads the file
and the environment, and checks what no single key can tell.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, field
from msgspec.structs import fields

from gateway.auth import Token
from sessions.languages import DEFAULT_LANGUAGES
from sessions.settings import BuildSettings, EngineSettings, Limits, PoolSettings, Section, SessionLimits


class ServerSection(Section, frozen=True):
    """Where the gateway listens and what it calls itself."""

    host: str = "127.0.0.1"
    """The address to listen on; anything beyond loopback needs tokens and the docker engine."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8000
    """The port to listen on; the variable `PORT` sets it too."""
    public_url: str = ""
    """What image and file URLs start with, e.g. `https://cells.example.org`; empty: the request's own host."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages that may use this server, e.g. `[https://chat.example.org]`."""
    allowed_hosts: tuple[str, ...] = ()
    """Further host names of this server, where it listens on loopback behind a proxy."""
    data_dir: str = ""
    """Embedded database and sockets; empty: `/var/lib/cellblock` for root, else `~/.local/share/cellblock`."""


class AuthSection(Section, frozen=True):
    """Who may use this gateway."""

    required: bool | None = None
    """Whether requests need a token; null: exactly when there are any, here or made by `cellblock token create`."""
    tokens: tuple[Token, ...] = ()
    """Tokens by their SHA-256, each with a tenant and a name; see the comments in `config.yaml`."""

    @property
    def is_required(self) -> bool:
        """Whether a request without a token is refused."""
        return bool(self.tokens) if self.required is None else self.required


class DatabaseSection(Section, frozen=True):
    """Where runs and sessions are kept."""

    url: str = ""
    """`postgresql://user:password@host:5432/cellblock`, at most 9 connections; empty: embedded in `server.data_dir`."""


class RetentionSection(Section, frozen=True):
    """How long runs are kept."""

    days: Annotated[float, Meta(ge=0, le=36_500)] = 30.0
    """Runs that are older are removed; 0 keeps everything."""


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration, checked. `languages` maps what clients ask for to a Jupyter kernelspec name.

    `env_allowed` stands among the languages in the file: the environment variables that a run may be given.
    """

    server: ServerSection = ServerSection()
    auth: AuthSection = AuthSection()
    database: DatabaseSection = DatabaseSection()
    engine: EngineSettings = EngineSettings()
    languages: dict[str, str] = field(default_factory=lambda: {**DEFAULT_LANGUAGES})
    env_allowed: tuple[str, ...] = ()
    build: BuildSettings = BuildSettings()
    pool: PoolSettings = PoolSettings()
    sessions: SessionLimits = SessionLimits()
    limits: Limits = Limits()
    retention: RetentionSection = RetentionSection()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the gateway. Of host names, only localhost counts."""
        host = self.server.host.strip("[]").lower()
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def data_dir(self, environ: Mapping[str, str]) -> Path:
        """Where the embedded database, sockets and the gateway's own id are kept."""
        if self.server.data_dir:
            return Path(self.server.data_dir).expanduser().absolute()
        if os.geteuid() == 0:
            return Path("/var/lib/cellblock")
        return Path(environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "cellblock"


SECTIONS: Mapping[str, type[Section]] = {
    section.name: section.type for section in fields(Config) if section.name not in ("languages", "env_allowed")
}
