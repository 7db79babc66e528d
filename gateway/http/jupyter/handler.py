"""What the routes of Jupyter's REST API have in common: their error shape, their bodies, and the token in the query."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tornado.httputil import HTTPHeaders

from gateway.http.base.handler import BaseHandler
from gateway.http.parse.body import parse_json
from sessions.errors import InvalidJSON, InvalidRequest, NotFound

_EMPTY_HEADERS = ("", "token", "bearer")
_PLAIN = frozenset(
    (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.CONFLICT,
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
)
"""Where jupyter_server gives no reason. For the others its gateway client shows it, or else blames the connection."""


class JupyterHandler(BaseHandler):
    """One request of a Jupyter client."""

    def authorization(self) -> str | None:
        return jupyter_authorization(self.request.query, self.request.headers)

    @property
    def base_path(self) -> str:
        """What all paths begin with: that of `server.public_url`, mostly nothing."""
        return urlsplit(self.context.public_url).path

    def model(self) -> dict[str, Any] | None:
        """The body, whatever its Content-Type says; None where there is none, or null. Raises InvalidRequest."""
        if not self.body:
            return None
        try:
            value = parse_json(self.body)
        except InvalidJSON as error:
            raise InvalidJSON(f"Invalid JSON in body of request. {error}") from error
        if value is not None and not isinstance(value, dict):
            raise InvalidRequest("The body must be a JSON object.")
        return value

    def complete_error(self, shape: dict[str, Any]) -> dict[str, Any]:
        return {"message": shape["error"], "reason": None if self.get_status() in _PLAIN else shape["code"]}


class JupyterUnknownHandler(JupyterHandler):
    """Routes of jupyter_server that Cellblock lacks: contents, terminals and the rest."""

    async def handle_request(self) -> None:
        raise NotFound("Not Found")


def jupyter_authorization(query: str, headers: HTTPHeaders) -> str | None:
    """The `Authorization` header, or what it would be for `?token=`; None where both are empty.

    The query takes precedence, as with jupyter_server: some clients keep the header for a proxy's own token.
    """
    for name, value in reversed(parse_qsl(query, encoding="latin-1")):  # as header bytes are decoded
        if name == "token" and value.strip():
            return f"token {value}"
    header = headers.get("Authorization", "")
    return None if header.strip().lower() in _EMPTY_HEADERS else header
