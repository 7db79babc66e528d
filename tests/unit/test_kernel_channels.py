"""The supervisor's end of a kernel's ZMQ channels, against a socket that plays the kernel."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from kernel_image.channels import KernelChannels
from kernel_image.endpoints import tcp_endpoints, unix_endpoints

PARTS = [b'{"msg_type": "x"}', b"{}", b"{}", b"{}"]


class Shell:
    """A kernel's shell socket, and channels connected to it; `received` is what the channels have passed on."""

    def __init__(self, directory: Path) -> None:
        self.received: list[list[bytes]] = []
        self.context: zmq.Context[Any] = zmq.Context()
        endpoints = unix_endpoints(directory / "k1")
        self.channels = KernelChannels(self.context, endpoints, "python3", lambda _, parts: self.received.append(parts))
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.bind(f"ipc://{directory}/k1-1")

    def hear(self) -> list[bytes]:
        assert self.socket.poll(5000)
        return self.socket.recv_multipart()

    def reply(self, identity: bytes, parts: list[bytes] = PARTS, *, signature: bytes | None = None) -> None:
        key = self.channels.connection_info()["key"].encode()
        signed = hmac.new(key, b"".join(parts[:4]), hashlib.sha256).hexdigest().encode()
        self.socket.send_multipart([identity, b"<IDS|MSG>", signed if signature is None else signature, *parts])

    def close(self) -> None:
        self.channels.close()
        self.socket.close(0)
        self.context.destroy(linger=0)


@pytest.fixture
async def shell(short_dir: Path) -> AsyncIterator[Shell]:
    shell = Shell(short_dir)
    yield shell
    shell.close()


async def has_received(shell: Shell, count: int) -> None:
    async with asyncio.timeout(5):
        while len(shell.received) < count:
            await asyncio.sleep(0.005)


async def test_a_request_is_signed_and_its_reply_passed_on(shell: Shell) -> None:
    shell.channels.send("shell", [*PARTS, b"buffer"])
    identity, delimiter, signature, *parts = shell.hear()
    key = shell.channels.connection_info()["key"].encode()
    assert (delimiter, parts) == (b"<IDS|MSG>", [*PARTS, b"buffer"])
    assert signature == hmac.new(key, b"".join(PARTS), hashlib.sha256).hexdigest().encode()
    shell.reply(identity, [*PARTS, b"buffer"])
    await has_received(shell, 1)
    assert shell.received == [[*PARTS, b"buffer"]]


async def test_replies_that_arrive_while_a_request_is_sent_are_not_left_lying(shell: Shell) -> None:
    shell.channels.send("shell", PARTS)
    identity = shell.hear()[0]
    for count in range(1, 30):
        shell.reply(identity)
        time.sleep(0.005)  # noqa: ASYNC251 - it arrives, and the loop has not looked yet
        shell.channels.send("shell", PARTS)
        await has_received(shell, count)


async def test_what_is_malformed_or_wrongly_signed_is_dropped(shell: Shell) -> None:
    shell.channels.send("shell", PARTS)
    identity = shell.hear()[0]
    shell.reply(identity, signature=b"")
    shell.reply(identity, signature=b"0" * 64)
    shell.reply(identity, PARTS[:3])
    for frames in ([b"x"], [b"<IDS|MSG>"], [b"<IDS|MSG>", b"sig"], [b""]):
        shell.socket.send_multipart([identity, *frames])
    shell.reply(identity)
    await has_received(shell, 1)
    assert shell.received == [PARTS]


async def test_draining_takes_all_that_has_arrived(shell: Shell) -> None:
    shell.channels.send("shell", PARTS)
    identity = shell.hear()[0]
    for _ in range(12):
        shell.reply(identity)
    time.sleep(0.1)  # noqa: ASYNC251 - so that nobody but `drain` can take it
    assert shell.channels.drain() == 12
    assert shell.channels.drain() == 0


def test_a_path_too_long_for_a_socket_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="longer than"):
        unix_endpoints(Path("/tmp", "x" * 120))


def test_a_kernel_may_listen_on_ports_instead_which_are_free_and_leave_no_files() -> None:
    endpoints = tcp_endpoints()
    info = endpoints.connection_info()
    ports = [info[f"{channel}_port"] for channel in ("shell", "iopub", "stdin", "control", "hb")]
    assert (info["transport"], info["ip"], len(set(ports))) == ("tcp", "127.0.0.1", 5)
    assert endpoints.url("shell") == f"tcp://127.0.0.1:{ports[0]}"
    assert endpoints.socket_files() == []
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


async def test_a_flood_is_taken_in_turns_and_none_of_it_is_left_lying(shell: Shell) -> None:
    shell.channels.send("shell", PARTS)
    identity = shell.hear()[0]
    for _ in range(100):
        shell.reply(identity)
    time.sleep(0.1)  # noqa: ASYNC251 - so that one signal stands for all of it
    await has_received(shell, 100)
