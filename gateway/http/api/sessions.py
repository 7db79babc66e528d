"""`/sessions` and what is below it, but for the files and the notebook: kernels that a client keeps under an id."""

from __future__ import annotations

from typing import Any

from gateway.http.base.handler import BaseHandler
from gateway.http.parse import session_request, urls
from gateway.http.parse.times import iso
from sessions.model import SessionNews, SessionView


class SessionsHandler(BaseHandler):
    """The tenant's sessions."""

    async def handle_request(self) -> None:
        if self.request.method != "POST":
            views = self.context.service.list_sessions(self.tenant)
            await self.send_json({"sessions": [session_view(view) for view in views]})
            return
        asked = session_request.session_request(
            session_request.optional_object(self.request.headers, self.body),
            tenant=self.tenant,
            languages=self.context.config.languages,
            limits=self.context.config.sessions,
        )
        view = await self.context.service.create_session(asked)
        self.set_header("Location", urls.session_url(self.base_url, view.session.session_id))
        await self.send_json(session_view(view), status=201)


class SessionHandler(BaseHandler):
    """One session."""

    async def handle_request(self) -> None:
        session_id = urls.session_in(self.request.path)
        service = self.context.service
        match self.request.method:
            case "PATCH":
                value = session_request.optional_object(self.request.headers, self.body)
                idle_timeout_s, max_lifetime_s = session_request.renewal(value, self.context.config.sessions)
                view = await service.renew_session(
                    self.tenant, session_id, idle_timeout_s=idle_timeout_s, max_lifetime_s=max_lifetime_s
                )
                await self.send_json(session_view(view))
            case "DELETE":
                await service.delete_session(self.tenant, session_id)
                await self.send_nothing()
            case _:
                await self.send_json(session_view(service.get_session(self.tenant, session_id)))


class SessionInterruptHandler(BaseHandler):
    """Ctrl-C for what runs in a session."""

    async def handle_request(self) -> None:
        session_id = urls.session_in(self.request.path)
        await self.context.service.interrupt_session(self.tenant, session_id)
        await self.send_json({"session_id": session_id}, status=202)


class SessionRestartHandler(BaseHandler):
    """A fresh kernel for a session."""

    async def handle_request(self) -> None:
        session_id = urls.session_in(self.request.path)
        view = await self.context.service.restart_session(self.tenant, session_id)
        await self.send_json({**session_view(view), "session_lost": view.session.news is SessionNews.LOST})


def session_view(view: SessionView) -> dict[str, Any]:
    """A session as answers show it."""
    session = view.session
    return {
        "session_id": session.session_id,
        "kernel_id": session.public_kernel_id,
        "language": session.language,
        "state": view.state.value,
        "created_at": iso(session.created_at),
        "last_used_at": iso(session.last_used_at),
        "expires_at": iso(session.expires_at),
        "idle_timeout": session.idle_timeout_s,
        "max_lifetime": session.max_lifetime_s,
        "runs": session.runs,
        "usage": session.usage.as_json(),
    }
