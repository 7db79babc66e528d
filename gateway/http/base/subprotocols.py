"""A token among the sub-protocols of a WebSocket, for browsers, which cannot send other headers. Pure.

Kubernetes has it so (https://github.com/kubernetes/kubernetes/pull/47740): a name with the token in it, beside the name
of what is spoken. The token is never the sub-protocol that is chosen.
"""

from __future__ import annotations

import base64
import binascii

from tornado.httputil import HTTPHeaders

from sessions.errors import Unauthorized

RUNS = "v1.runcode.cellblock"
"""What `/runcode/ws` speaks, for clients that have to offer a name."""

TOKEN_PREFIX = "base64url.bearer.authorization.cellblock."  # noqa: S105 - what is before a token
"""The token follows: UTF-8 in Base64 with the URL-safe alphabet, without padding."""


def offered(headers: HTTPHeaders) -> list[str]:
    """The names that the client offers."""
    return [name for part in headers.get("Sec-WebSocket-Protocol", "").split(",") if (name := part.strip())]


def subprotocol_authorization(headers: HTTPHeaders) -> str | None:
    """What the header `Authorization` would be; None where no name has a token. Raises Unauthorized."""
    for name in offered(headers):
        if name.startswith(TOKEN_PREFIX):
            text = name.removeprefix(TOKEN_PREFIX)
            try:
                token = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            except (binascii.Error, ValueError):
                raise Unauthorized from None
            return f"Bearer {token.decode('latin-1')}"  # as header bytes are decoded
    return None
