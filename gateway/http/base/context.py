"""What the composition root gives to every handler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gateway.auth import Authenticator, SiteRules
from gateway.http.base.limits import HttpLimits
from sessions.service import Service
from sessions.settings import Limits, SessionLimits


@dataclass(frozen=True, slots=True)
class Context:
    """Shared by all handlers of one server. `public_url` is empty where URLs follow the request's own host.

    `limits` and `session_limits` are configured; `http` counts what this server holds. `started_at` is what Jupyter
    clients see.
    """

    service: Service
    authenticator: Authenticator
    site: SiteRules
    limits: Limits
    session_limits: SessionLimits
    languages: Mapping[str, str]
    public_url: str
    http: HttpLimits
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
