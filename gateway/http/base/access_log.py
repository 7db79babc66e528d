"""The access log: one line per request, without anything that the client wrote but its request id. It counts, too."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus

import structlog
from tornado.web import RequestHandler

from gateway.http.base.handler import BaseHandler

_log = structlog.get_logger("cellblock.http")


def log_access(handler: RequestHandler) -> None:
    """One line per request. The route, never the URL: GET /runcode has code in it."""
    if not isinstance(handler, BaseHandler):
        return
    duration_s = time.time() - handler.request._start_time  # noqa: SLF001 - tornado's own clock for this
    status = handler.get_status()
    handler.context.http.requests.note(handler.route.path, handler.request.method, status, duration_s)
    refusal = {"error_code": handler.error_code} if handler.error_code else {}
    level = logging.DEBUG if handler.is_probe and status == HTTPStatus.OK else logging.INFO
    _log.log(
        level,
        "request",
        **handler.log_fields,
        tenant=handler.tenant,
        method=handler.request.method,
        route=handler.route.path,
        status=status,
        ms=round(duration_s * 1000, 1),
        **handler.logged,
        **refusal,
    )
