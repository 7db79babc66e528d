"""How many connections there are descriptors for, and what a listening socket does when none are left."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

from gateway.doctor.findings import Level
from gateway.doctor.machine import descriptor_finding
from gateway.host.bound_sockets import BoundSockets
from gateway.host.descriptors import ListeningSocket, connections_within, descriptors_for
from gateway.http.base.limits import HttpBounds

DEADLINE_S = 30


@pytest.mark.parametrize(
    ("limit", "sandboxes", "connections"),
    [
        (1 << 20, 24, 1024),
        (1160, 24, 1024),
        (1159, 24, 1023),
        (256, 24, 120),
        (256, 8, 168),
        (32, 24, 16),
        (256, 500, 16),
    ],
)
def test_there_are_as_many_connections_as_descriptors_are_left(limit: int, sandboxes: int, connections: int) -> None:
    assert connections_within(limit, sandboxes) == connections


def test_the_wanted_limit_is_the_inverse() -> None:
    assert connections_within(descriptors_for(500, 24), 24) == 500


def test_streams_leave_half_of_the_connections_to_others() -> None:
    few = HttpBounds.within(120)
    assert (few.connections, few.streams, few.streams_per_tenant) == (120, 60, 15)
    assert HttpBounds.within(1024) == HttpBounds()
    assert HttpBounds.within(4).streams_per_tenant == 1


@pytest.mark.parametrize(
    ("limit", "level", "said"),
    [
        (1 << 20, Level.OK, "1048576"),
        (256, Level.WARN, "does for 120 connections, not for 1024"),
        (128, Level.FAIL, "24 sandboxes and the gateway need 152"),
    ],
)
def test_the_doctor_judges_the_limit(limit: int, level: Level, said: str) -> None:
    finding = descriptor_finding(limit, 24)
    assert (finding.name, finding.level) == ("open files", level)
    assert said in finding.what
    assert (finding.what_to_do == "") == (level is Level.OK)
    assert level is Level.OK or "1160" in finding.what_to_do


class Greeter(TCPServer):
    async def handle_stream(self, stream: IOStream, address: Any) -> None:
        del address
        await stream.write(b"welcome")
        stream.close()


class Shortage:
    """Refuses to accept while it lasts; `calls` counts the attempts."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0
        self.lasts = True

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = socket.socket.accept

        def accept(sock: socket.socket) -> tuple[socket.socket, Any]:
            self.check()
            return real(sock)

        monkeypatch.setattr(socket.socket, "accept", accept)

    def check(self) -> None:
        if self.lasts:
            self.calls += 1
            raise OSError(self.number, os.strerror(self.number))


@pytest.fixture
def bound() -> Iterator[BoundSockets]:
    sockets = BoundSockets.bind("127.0.0.1", 0)
    yield sockets
    sockets.close()


@pytest.fixture(autouse=True)
def _nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListeningSocket, "_told_at_s", None)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_shortage_pauses_accepting_and_ends_by_itself(
    bound: BoundSockets, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    shortage, asked = Shortage(number), []
    shortage.install(monkeypatch)
    server = Greeter()
    listening = bound.listen()
    for sock in listening:
        sock.on_shortage = lambda: asked.append(1)
    server.add_sockets(listening)
    with capture_logs() as log:
        reader, writer = await asyncio.open_connection("127.0.0.1", bound.port)
        async with asyncio.timeout(DEADLINE_S):
            while shortage.calls < 3:
                turns = shortage.calls
                await asyncio.sleep(0)  # a turn of the loop, in which tornado would try again
                await asyncio.sleep(0)
                assert shortage.calls <= turns + 1
            shortage.lasts = False
            assert await reader.read() == b"welcome"
    writer.close()
    server.stop()
    assert [line["event"] for line in log] == ["accepting_paused"]
    assert log[0]["reason"] == os.strerror(number)
    assert len(asked) == shortage.calls


async def test_a_server_may_stop_amid_a_shortage(bound: BoundSockets, monkeypatch: pytest.MonkeyPatch) -> None:
    shortage = Shortage(errno.EMFILE)
    shortage.install(monkeypatch)
    server = Greeter()
    server.add_sockets(bound.listen())
    _, writer = await asyncio.open_connection("127.0.0.1", bound.port)
    async with asyncio.timeout(DEADLINE_S):
        while not shortage.calls:
            await asyncio.sleep(0.01)
    server.stop()
    await asyncio.sleep(0.4)
    assert shortage.calls == 1
    writer.close()
