"""What names the tenant of a Jupyter client's request: the query, or the header."""

from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from gateway.auth import Authenticator, Token
from gateway.http.jupyter.handler import jupyter_authorization
from sessions.model import ANONYMOUS


def authorization(query: str, header: str | None = None) -> str | None:
    headers = HTTPHeaders() if header is None else HTTPHeaders({"Authorization": header})
    return jupyter_authorization(query, headers)


@pytest.mark.parametrize("header", [None, "", " ", "token", "token ", "Token\t", "Bearer", "bearer  "])
def test_an_empty_header_is_none(header: str | None) -> None:
    assert authorization("", header) is None
    assert authorization("token=", header) is None
    assert authorization("token=a", header) == "token a"
    unneeded = Authenticator((Token(sha256="0" * 64),), required=False)
    assert unneeded.tenant(authorization("", header)) == ANONYMOUS


def test_the_query_counts_before_the_header_and_its_last_token_before_others() -> None:
    assert authorization("token=a&x=1&token=b&token=", "Bearer c") == "token b"
    assert authorization("x=token", "Bearer c") == "Bearer c"


def test_bytes_of_the_query_are_read_as_those_of_the_header() -> None:
    assert authorization("token=%c3%a4") == "token \xc3\xa4"
