"""Connections that are told there is no place for them: streams on socket pairs, and delegates that count."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine
from tornado.ioloop import IOLoop

from gateway.http.base.connections import Places
from gateway.http.base.http1 import ErrorReportingStream, PlacedDelegate

LIMIT = 8
POST = RequestStartLine("POST", "/runcode", "HTTP/1.1")


class Requests(HTTPMessageDelegate):
    """Counts the requests that were let in."""

    number = 0

    def headers_received(self, start_line: object, headers: HTTPHeaders) -> None:  # noqa: ARG002
        self.number += 1


@pytest.fixture
def ends() -> Iterator[tuple[ErrorReportingStream, socket.socket]]:
    """The server's end of a connection that stands on the doorstep of full places, and the client's."""
    places = Places(LIMIT, lambda: 0.0)
    for _ in range(LIMIT):
        taken = places.take("127.0.0.1", lambda: None, lambda: 0.0)
        if taken is not None:
            taken.serve()
    ours, theirs = socket.socketpair()
    stream = ErrorReportingStream(ours)
    stream.place = places.take("127.0.0.1", stream.make_room, stream.stalled_s)
    with closing(theirs):
        yield stream, theirs
        stream.close()


async def refuse(stream: ErrorReportingStream) -> int:
    """Hand a request to a connection without a place, and say how many got through."""
    assert stream.place is not None
    requests = Requests()
    PlacedDelegate(requests, stream, stream.place).headers_received(POST, HTTPHeaders())
    return requests.number


def test_a_request_without_a_place_is_told_so(ends: tuple[ErrorReportingStream, socket.socket]) -> None:
    stream, client = ends
    assert IOLoop.current().run_sync(lambda: refuse(stream)) == 0
    assert client.recv(4096).startswith(b"HTTP/1.1 503 ")
    assert stream.closed()


def test_a_request_read_before_its_connection_was_closed_is_refused_quietly(
    ends: tuple[ErrorReportingStream, socket.socket],
) -> None:
    stream, client = ends
    stream.close()
    assert IOLoop.current().run_sync(lambda: refuse(stream)) == 0
    assert client.recv(4096) == b""
