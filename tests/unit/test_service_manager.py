"""What systemd is told of a gateway, and when."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.host.service_manager import ServiceManager
from sessions.service import Readiness

READY = Readiness(ready=True, reasons=(), warm=2, engine="docker")
NOT_READY = Readiness(ready=False, reasons=("No sandbox is warm yet.", "Draining."), warm=0, engine="docker")


class Systemd:
    """The end of the socket at which the messages arrive."""

    def __init__(self, address: str) -> None:
        self.environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0"))
        self._socket.settimeout(0)

    def close(self) -> None:
        self._socket.close()

    async def next(self) -> list[str]:
        async with asyncio.timeout(30):
            return (await asyncio.get_running_loop().sock_recv(self._socket, 4096)).decode().split("\n")


@pytest.fixture(params=["a path", "an abstract name"])
def systemd(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[Systemd]:
    systemd = Systemd(f"{'@' if 'abstract' in request.param else ''}{short_dir}/notify")
    yield systemd
    systemd.close()


async def test_it_is_ready_once_and_gives_signs_of_life_and_reasons_from_then_on(systemd: Systemd) -> None:
    manager, readiness = ServiceManager(systemd.environ), NOT_READY
    following = asyncio.ensure_future(manager.follow(lambda: readiness))
    try:
        waiting = ["STATUS=No sandbox is warm yet. Draining.", "WATCHDOG=1"]
        assert await systemd.next() == waiting
        readiness = READY
        while (said := await systemd.next()) == waiting:
            pass
        assert said == ["STATUS=Ready.", "READY=1", "WATCHDOG=1"]
        assert await systemd.next() == ["STATUS=Ready.", "WATCHDOG=1"]
        readiness = NOT_READY
        while (said := await systemd.next()) != waiting:
            assert said == ["STATUS=Ready.", "WATCHDOG=1"]
        readiness = READY
        while (said := await systemd.next()) == waiting:
            pass
        assert said == ["STATUS=Ready.", "WATCHDOG=1"]
    finally:
        following.cancel()
    manager.stopping()
    while "STOPPING=1" not in (said := await systemd.next()):
        assert "READY=1" not in said


async def test_that_it_is_ready_is_said_again_when_the_message_found_no_room(systemd: Systemd) -> None:
    filler = b"X=1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        other.connect(systemd.environ["NOTIFY_SOCKET"].replace("@", "\0"))
        with suppress(BlockingIOError):
            while True:
                other.send(filler)
    asked = asyncio.Event()

    def readiness() -> Readiness:
        asked.set()
        return READY

    following = asyncio.ensure_future(ServiceManager(systemd.environ).follow(readiness))
    try:
        await asked.wait()
        while (said := await systemd.next()) == [filler.decode()]:
            pass
        assert said == ["STATUS=Ready.", "READY=1", "WATCHDOG=1"]
    finally:
        following.cancel()


async def test_reasons_of_several_lines_are_one_status_and_no_other_message(systemd: Systemd) -> None:
    reasons = ("No sandbox can be started: refused:\nREADY=1\r\n\udc80",)
    not_ready = Readiness(ready=False, reasons=reasons, warm=0, engine="docker")
    following = asyncio.ensure_future(ServiceManager(systemd.environ).follow(lambda: not_ready))
    try:
        said = ["STATUS=No sandbox can be started: refused: READY=1 ?", "WATCHDOG=1"]
        assert await systemd.next() == said
    finally:
        following.cancel()


async def test_a_manager_that_is_gone_or_never_was_is_no_trouble(short_dir: Path) -> None:
    gone = ServiceManager({"NOTIFY_SOCKET": f"{short_dir}/gone", "WATCHDOG_USEC": "100000"})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gone.follow(lambda: READY), 0.2)
    gone.stopping()
    none = ServiceManager({"WATCHDOG_USEC": "nonsense"})
    await none.follow(lambda: READY)
    none.stopping()
