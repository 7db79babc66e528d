"""Directories and sockets that supervisors dial: one gateway leaves them to the next, and the rest is cleared up."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from structlog.testing import capture_logs
from supervised import supervised
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from gateway.supervisors import SupervisorSwitchboard
from kernel_image.protocol import SOCKET_NAME, SUBPROTOCOL
from sessions.errors import SetUpFailed
from sessions.model import KernelId
from sessions.ports import Link, LinkListener


def nobody(_link: Link) -> LinkListener:
    raise AssertionError("nobody was to dial here")


def kernel_id() -> KernelId:
    return KernelId(str(uuid4()))


async def dials(directory: Path) -> bool:
    """Whether somebody listens."""
    with socket.socket(socket.AF_UNIX) as dialling:
        dialling.setblocking(False)  # noqa: FBT003 - the standard library's own
        try:
            await asyncio.get_running_loop().sock_connect(dialling, str(directory / SOCKET_NAME))
        except OSError:
            return False
        return True


async def test_a_directory_that_was_let_go_is_the_same_one_when_it_is_opened_again(short_dir: Path) -> None:
    name, earlier = kernel_id(), SupervisorSwitchboard(short_dir / "s")
    directory = earlier.open(name, nobody)
    inode = directory.stat().st_ino
    earlier.release(name)
    assert not await dials(directory)
    later = SupervisorSwitchboard(short_dir / "s")
    assert later.open(name, nobody) == directory
    assert directory.stat().st_ino == inode
    assert await dials(directory)
    later.close(name)
    assert not directory.exists()


async def test_the_socket_of_a_gateway_that_was_killed_is_replaced(short_dir: Path) -> None:
    name, switchboard = kernel_id(), SupervisorSwitchboard(short_dir / "s")
    directory = switchboard.open(name, nobody)
    switchboard.close(name)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(directory / SOCKET_NAME))
    switchboard.open(name, nobody)
    assert await dials(directory)
    switchboard.close(name)


async def test_two_kernels_never_share_a_directory(short_dir: Path) -> None:
    switchboard = SupervisorSwitchboard(short_dir / "s")
    name = kernel_id()
    directory = switchboard.open(name, nobody)
    for other in (name, KernelId(name[:13] + "x" * 23)):
        with pytest.raises(SetUpFailed):
            switchboard.open(other, nobody)
    assert await dials(directory)
    switchboard.close(name)


async def test_leftovers_go_but_for_those_that_are_wanted_or_in_use(short_dir: Path) -> None:
    names = [kernel_id() for _ in range(4)]
    earlier = SupervisorSwitchboard(short_dir / "s")
    directories = [earlier.open(name, nobody) for name in names]
    for name in names:
        earlier.release(name)
    later = SupervisorSwitchboard(short_dir / "s")
    later.open(names[0], nobody)
    later.remove_leftovers([names[1], kernel_id()])
    assert [directory.exists() for directory in directories] == [True, True, False, False]
    assert await dials(directories[0])
    later.close(names[0])


async def test_unknown_kernels_are_no_error_and_neither_is_a_missing_root(short_dir: Path) -> None:
    switchboard = SupervisorSwitchboard(short_dir / "never made")
    switchboard.release(kernel_id())
    switchboard.close(kernel_id())
    switchboard.remove_leftovers([])


async def test_a_supervisor_finds_the_next_gateway_where_the_last_one_was(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard) as kernel:
        msg_id = kernel.send("import time; time.sleep(0.5); print('still here')")
        await kernel.until(lambda: kernel.frames[-1].parent_id == msg_id)
        switchboard.release(kernel.kernel_id)
        await kernel.until(lambda: kernel.link is None)
        switchboard.open(kernel.kernel_id, kernel.accept)
        assert (await kernel.end_of(msg_id)).text() == "still here\n"
        assert len(kernel.hellos) == 2


async def test_a_listener_that_fails_is_logged_without_the_address_that_the_sandbox_chose(
    short_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def on_text(self, _text: str) -> None:
            raise ZeroDivisionError

        on_binary = on_text

        def on_closed(self) -> None:
            pass

    name, switchboard = kernel_id(), SupervisorSwitchboard(short_dir / "s")
    path = switchboard.open(name, lambda _link: cast("LinkListener", Failing())) / SOCKET_NAME
    address = "ws://chosen.host/supervisor?chosen"
    with capture_logs() as logs:
        async with unix_connect(str(path), uri=address, subprotocols=[Subprotocol(SUBPROTOCOL)]) as link:
            await link.send("{}")
            with pytest.raises(ConnectionClosed):
                await link.recv()
    switchboard.close(name)
    assert [(line["event"], line["exc_info"][0]) for line in logs] == [("supervisor_socket_failed", ZeroDivisionError)]
    assert "chosen" not in caplog.text
