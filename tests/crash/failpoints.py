"""`cellblock` whose ports can kill it: around every commit, every message to and from a supervisor, every launch.

Run in place of `python -m gateway`. The file named by CRASH_FILE arms it: it holds `<name> [count]`, and at the
count-th time that this failpoint is passed after that the process kills itself. The gateway's own code has no such
points: its ports are wrapped where `gateway.app` would have named the adapters.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gateway import app
from gateway.cli import commands
from kernel_image import protocol
from sessions.ports import Link, LinkListener
from sessions.provisioners.docker import provisioner

STORE = (
    "add_run",
    "start_run",
    "append",
    "finish_run",
    "add_session",
    "update_session",
    "renew_session",
    "remove_session",
)
SENT = ("welcome", "ack", "file", "execute_request", "interrupt", "restart", "shutdown", "input_reply")
TAKEN = (
    "file_committed",
    "hello",
    "state",
    "execute_input",
    "stream",
    "display_data",
    "status",
    "execute_reply",
    "artifact",
    "done",
    "died",
    "rejected",
    "input_request",
)
ENGINE = ("launch", "kill")
ALL = tuple(
    f"{port}.{name}.{when}"
    for port, names in (("store", STORE), ("send", SENT), ("take", TAKEN), ("engine", ENGINE))
    for name in names
    for when in ("before", "after")
)


class Failpoints:
    """The armed one, if any, and how often it has been passed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._passed = 0

    def reach(self, name: str) -> None:
        """Die here, if that is what the file says."""
        try:
            armed, _, count = self._file.read_text().partition(" ")
        except FileNotFoundError:
            return
        if armed == name:
            self._passed += 1
            if self._passed >= int(count or 1):
                self._file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)


POINTS = Failpoints(Path(os.environ.get("CRASH_FILE", os.devnull)))


def around(port: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The same method, with a failpoint before it and one after it has returned."""
    name = f"{port}.{call.__name__}"

    @functools.wraps(call)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        POINTS.reach(f"{name}.before")
        result = await call(*args, **kwargs)
        POINTS.reach(f"{name}.after")
        return result

    return wrapped


def with_failpoints(adapter: type[Any], port: str, methods: tuple[str, ...]) -> type[Any]:
    """A subclass of an adapter whose methods are wrapped."""
    return type(adapter.__name__, (adapter,), {name: around(port, getattr(adapter, name)) for name in methods})


def kind_of_binary(data: bytes, *, numbered: bool) -> str:
    frame = data[8:] if numbered else data
    _, parts = protocol.decode_message(frame)
    return str(json.loads(parts[0])["msg_type"])


class CrashingLink:
    """`sessions.ports.Link` that dies before or after what it sends."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def send_binary(self, data: bytes) -> None:
        kind = kind_of_binary(data, numbered=False)
        POINTS.reach(f"send.{kind}.before")
        self._link.send_binary(data)
        POINTS.reach(f"send.{kind}.after")

    def send_text(self, text: str) -> None:
        kind = json.loads(text)["op"]
        POINTS.reach(f"send.{kind}.before")
        self._link.send_text(text)
        POINTS.reach(f"send.{kind}.after")

    def close(self, reason: str) -> None:
        self._link.close(reason)


class CrashingListener:
    """`sessions.ports.LinkListener` that dies before or after what it takes."""

    def __init__(self, listener: LinkListener) -> None:
        self._listener = listener

    def on_binary(self, data: bytes) -> Awaitable[None] | None:
        kind = kind_of_binary(data, numbered=True)
        POINTS.reach(f"take.{kind}.before")
        pause = self._listener.on_binary(data)
        POINTS.reach(f"take.{kind}.after")
        return pause

    def on_text(self, text: str) -> Awaitable[None] | None:
        kind = json.loads(text)["op"]
        POINTS.reach(f"take.{kind}.before")
        pause = self._listener.on_text(text)
        POINTS.reach(f"take.{kind}.after")
        return pause

    def on_closed(self) -> None:
        self._listener.on_closed()


class CrashingSwitchboard(app.SupervisorSwitchboard):
    """A switchboard whose links and listeners can die."""

    def open(self, kernel_id: Any, accept: Callable[[Link], LinkListener]) -> Path:
        return super().open(kernel_id, lambda link: CrashingListener(accept(CrashingLink(link))))


if __name__ == "__main__":
    app.PostgresStore = with_failpoints(app.PostgresStore, "store", STORE)  # type: ignore[misc]
    app.ProcessProvisioner = with_failpoints(app.ProcessProvisioner, "engine", ENGINE)  # type: ignore[misc]
    provisioner.DockerProvisioner = with_failpoints(provisioner.DockerProvisioner, "engine", ENGINE)  # type: ignore[misc]
    app.SupervisorSwitchboard = CrashingSwitchboard  # type: ignore[misc]
    commands.main()
