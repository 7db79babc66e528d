"""A token that comes among a WebSocket's sub-protocols, as browsers send it."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from gateway.http.base.subprotocols import RUNS, TOKEN_PREFIX, offered, subprotocol_authorization
from sessions.errors import Unauthorized


def authorization(*names: str) -> str | None:
    return subprotocol_authorization(HTTPHeaders({"Sec-WebSocket-Protocol": ", ".join(names)}))


def test_the_token_is_what_follows_the_prefix() -> None:
    assert authorization(RUNS, f"{TOKEN_PREFIX}Y2JfYWJj") == "Bearer cb_abc"
    assert authorization(f"{TOKEN_PREFIX}YQ", RUNS) == "Bearer a"
    assert authorization(RUNS) is None
    assert subprotocol_authorization(HTTPHeaders()) is None


def test_its_bytes_are_read_as_those_of_a_header() -> None:
    assert authorization(f"{TOKEN_PREFIX}w6Q") == "Bearer \xc3\xa4"
    assert authorization(f"{TOKEN_PREFIX}-_8") == "Bearer \xfb\xff"


@pytest.mark.parametrize("text", ["a", "YQ==YQ", "Y*Q"])
def test_what_is_no_base64_is_no_token(text: str) -> None:
    with pytest.raises(Unauthorized):
        authorization(RUNS, TOKEN_PREFIX + text)


def test_an_empty_token_stays_one_that_nobody_has() -> None:
    assert authorization(TOKEN_PREFIX) == "Bearer "


def test_names_may_come_in_several_headers() -> None:
    headers = HTTPHeaders()
    headers.add("Sec-WebSocket-Protocol", f"{RUNS} ,")
    headers.add("Sec-WebSocket-Protocol", "x")
    assert offered(headers) == [RUNS, "x"]
