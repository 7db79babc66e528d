"""What every handler of one server shares: the service, the configuration, and what follows from that."""

from __future__ import annotations

from datetime import UTC, datetime

from gateway.auth import Authenticator, SiteRules, StoredTokens
from gateway.config.sections import Config
from gateway.host.clock import SystemClock
from gateway.http.base.limits import HttpBounds, HttpLimits
from gateway.http.base.outgoing import AnswerRoom
from sessions.notebook_sessions import NotebookSessions
from sessions.runs.batch import Batches
from sessions.service import Service


class Context:
    """`public_url` is empty where URLs follow the request's own host; Jupyter clients are shown `started_at`."""

    def __init__(self, service: Service, config: Config, bounds: HttpBounds | None = None) -> None:
        server = config.server
        self.service = service
        self.notebooks = NotebookSessions(service, config.sessions)
        self.config = config
        self.authenticator = Authenticator(config.auth.tokens, required=config.auth.required)
        self.site = SiteRules.of(
            loopback=config.is_loopback,
            public_url=server.public_url,
            allowed_origins=server.allowed_origins,
            allowed_hosts=server.allowed_hosts,
        )
        self.public_url = server.public_url.rstrip("/")
        self.http = HttpLimits(config.limits.request_bytes, bounds or HttpBounds())
        self.answers = AnswerRoom(self.http.bounds)
        self.batches = Batches(config.pool.max, self.http.bounds.batch_patience_s, SystemClock().monotonic)
        self.started_at = datetime.now(UTC)

    def set_stored_tokens(self, stored: StoredTokens) -> None:
        """The tokens in the database as they are now. Streams of those that are none any more end."""
        self.authenticator.set_stored(stored)
        self.http.streams.end_refused()
