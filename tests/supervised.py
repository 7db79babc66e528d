"""A real supervisor process without a container, and the gateway's end of its WebSocket, played by the test.

The test sees every frame and decides what is acknowledged; nothing of `sessions` is in between.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from shared_template import ForkedSupervisor

from gateway.supervisors import SupervisorSwitchboard
from kernel_image import protocol
from sessions.kernels.files import SupervisorFiles
from sessions.kernels.messages import RequestBuilder
from sessions.model import KernelId
from sessions.ports import Link, LinkListener
from sessions.settings import Timeouts

PATIENCE_S = 30.0
_LEFT_OUT = ("PYTEST_CURRENT_TEST", "PYTHONPATH")


def new_request(code: str) -> tuple[str, bytes]:
    """An execute_request: its msg_id and its frame."""
    msg_id = uuid4().hex
    return msg_id, RequestBuilder().execute(msg_id, code)


@dataclass(frozen=True)
class Frame:
    """One numbered frame. `msg_type` is a control message's `op` where `channel` is empty."""

    seq: int
    channel: str
    msg_type: str
    content: Mapping[str, Any]
    parent_id: str = ""
    buffers: tuple[bytes, ...] = ()
    msg_id: str = ""


@dataclass
class Run:
    """What came of one request, up to its `done` or `rejected`, or the kernel's `died`."""

    msg_id: str
    frames: list[Frame] = field(default_factory=list)

    @property
    def end(self) -> Frame:
        return self.frames[-1]

    def types(self) -> list[str]:
        return [frame.msg_type for frame in self.frames]

    def text(self, name: str = "stdout") -> str:
        streams = [frame.content for frame in self.frames if frame.msg_type == "stream"]
        return "".join(content["text"] for content in streams if content["name"] == name)

    def reply(self) -> Mapping[str, Any]:
        return next(frame.content for frame in self.frames if frame.msg_type == "execute_reply")

    def value(self) -> str:
        return next(str(f.content["data"]["text/plain"]) for f in self.frames if f.msg_type == "execute_result")

    def files(self) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for frame in self.frames:
            if frame.msg_type == "artifact":
                path = frame.content["path"]
                if (original := frame.content.get("same_as")) is not None:
                    files[path] = files[original]
                    continue
                assert frame.content["offset"] == len(files.get(path, b""))
                files[path] = files.get(path, b"") + frame.buffers[0]
        return files


class Supervised:
    """The supervisor, its directories, and what the gateway's end has received: `frames`, each number once.

    It is forked of a template, as in the process engine, or else started as in a container, where `is_forked` is false.
    `acknowledges` is whether everything is acknowledged as it comes; `resent` counts frames that came again. What is
    not numbered goes to `files`.
    """

    def __init__(
        self, root: Path, switchboard: SupervisorSwitchboard, *, is_forked: bool = True, **settings: Any
    ) -> None:
        self.kernel_id = KernelId(str(uuid4()))
        self.frames: list[Frame] = []
        self.hellos: list[Mapping[str, Any]] = []
        self.acknowledges = True
        self.acknowledged = 0
        self.resent = 0
        self.link: Link | None = None
        self.welcomes = True
        self.work_dir, self.ipc_dir, self.home_dir = root / "w", root / "i", root / "h"
        for directory in (self.work_dir, self.ipc_dir, self.home_dir):
            directory.mkdir()
        self._switchboard = switchboard
        self._changed = asyncio.Event()
        self._builder = RequestBuilder()
        self._log = root / "log"
        directory = switchboard.open(self.kernel_id, self.accept)
        self.files = SupervisorFiles(self._linked, Timeouts().file_answer_timeout_s)
        self._settings = protocol.SupervisorSettings(
            kernel_id=self.kernel_id,
            credential="the credential",
            gateway=f"unix:{directory / protocol.SOCKET_NAME}",
            work_dir=str(self.work_dir),
            ipc_dir=str(self.ipc_dir),
            home_dir=str(self.home_dir),
            **settings,
        )
        self.process = self._fork() if is_forked else self._spawn()

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
        return environment | {"HOME": str(self.home_dir)}

    def _fork(self) -> ForkedSupervisor:
        return ForkedSupervisor(self._environment(), self._settings.to_json(), self._log)

    def _spawn(self) -> subprocess.Popen[bytes]:
        environment = self._environment() | {protocol.SETTINGS_VARIABLE: self._settings.to_json()}
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-m", "kernel_image"], env=environment, stdout=log, stderr=log
            )

    # --- what the tests do --------------------------------------------------------------------------------------------

    async def ready(self, generation: int = 1) -> None:
        """Wait until the kernel is idle for the nth time."""
        await self.until(lambda: len(self.states("idle")) >= generation)

    async def run(self, code: str, **metadata: Any) -> Run:
        return await self.end_of(self.send(code, **metadata))

    def send(self, code: str, **metadata: Any) -> str:
        """Send a request; returns its msg_id."""
        msg_id = uuid4().hex
        frame = self._builder.execute(msg_id, code, metadata=metadata or None)
        self.send_frame(frame)
        return msg_id

    def _linked(self) -> Link:
        assert self.link is not None
        return self.link

    def send_frame(self, frame: bytes) -> None:
        self._linked().send_binary(frame)

    def control(self, op: str, **fields: Any) -> None:
        self._linked().send_text(protocol.encode_control(op, **fields))

    def send_message(self, channel: str, msg_type: str, content: Mapping[str, Any]) -> str:
        """Send any Jupyter message; returns its msg_id."""
        header = {"msg_id": uuid4().hex, "msg_type": msg_type, "session": "s", "username": "u", "version": "5.4"}
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        self.send_frame(protocol.encode_message(channel, parts))
        return header["msg_id"]

    def interrupt(self, msg_id: str, grace_s: float = 5.0) -> None:
        self.control(protocol.INTERRUPT, msg_id=msg_id, grace_s=grace_s)

    async def end_of(self, msg_id: str) -> Run:
        await self.until(lambda: self._end_of(msg_id) is not None)
        run = self._end_of(msg_id)
        assert run is not None
        return run

    async def until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        try:
            async with asyncio.timeout(patience_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            seen = [f"{frame.msg_type} {frame.content}"[:150] for frame in self.frames[-20:]]
            raise AssertionError("\n".join(["not in time", *seen, self.log()])) from None

    def log(self) -> str:
        """What the supervisor has logged so far."""
        return self._log.read_text()

    async def printed(self, text: str) -> None:
        """Wait until this has been printed by whichever run."""
        await self.until(lambda: any(text in str(f.content.get("text")) for f in self.frames))

    def states(self, state: str) -> list[Frame]:
        return [f for f in self.frames if f.msg_type == protocol.STATE and f.content["state"] == state]

    def deaths(self) -> list[Frame]:
        return [frame for frame in self.frames if frame.msg_type == protocol.DIED]

    def acknowledge(self, seq: int) -> None:
        self.acknowledged = seq
        self.control(protocol.ACK, seq=seq)

    async def reconnect(self) -> None:
        """Drop the connection, and wait until the supervisor has dialled again and been welcomed."""
        assert self.link is not None
        count = len(self.hellos)
        self.link.close("dropped by the test")
        await self.until(lambda: len(self.hellos) > count)

    async def ended(self, patience_s: float = PATIENCE_S) -> int:
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), patience_s)

    async def close(self) -> None:
        self.welcomes = False
        if self.process.poll() is None:
            self.process.terminate()
            try:
                await self.ended(10)
            except TimeoutError:
                self.process.kill()
                self.process.wait()
        self._switchboard.close(self.kernel_id)

    def accept(self, link: Link) -> LinkListener:
        """Take a connection; a test may listen for it anew."""
        return _End(self, link)

    # --- what the connections tell ------------------------------------------------------------------------------------

    def take(self, frame: Frame) -> None:
        if frame.seq <= len(self.frames):
            self.resent += 1
        else:
            assert frame.seq == len(self.frames) + 1, f"frame {frame.seq} after {len(self.frames)}"
            self.frames.append(frame)
        if self.acknowledges:
            self.acknowledge(frame.seq)
        self.changed()

    def changed(self) -> None:
        self._changed.set()

    def _end_of(self, msg_id: str) -> Run | None:
        run = Run(msg_id)
        for frame in self.frames:
            if frame.parent_id == msg_id or (frame.msg_type == protocol.GAP and frame.content["msg_id"] == msg_id):
                run.frames.append(frame)
            told = frame.content.get("msg_id") == msg_id or msg_id in frame.content.get("never_run", ())
            if frame.msg_type in (protocol.DONE, protocol.DIED, protocol.REJECTED) and told:
                run.frames.append(frame)
                return run
        return None


class _End:
    """The gateway's end of one connection (`sessions.ports.LinkListener`)."""

    def __init__(self, supervised: Supervised, link: Link) -> None:
        self._supervised = supervised
        self._link = link

    def on_binary(self, data: bytes) -> None:
        seq, message = protocol.split_number(data)
        if seq == 0:
            self._supervised.files.handle_frame(message)
            return
        channel, (header, parent, _, content, *buffers) = protocol.decode_message(message)
        head = json.loads(header)
        msg_type, msg_id = head["msg_type"], head["msg_id"]
        parent_id = json.loads(parent).get("msg_id", "")
        self._supervised.take(Frame(seq, channel, msg_type, json.loads(content), parent_id, tuple(buffers), msg_id))

    def on_text(self, text: str) -> None:
        supervised = self._supervised
        fields = json.loads(text)
        op = fields.pop("op")
        if op.startswith("file_"):
            supervised.files.handle_control({"op": op, **fields})
        elif op != protocol.HELLO:
            supervised.take(Frame(fields.pop("seq"), "", op, fields))
        elif supervised.welcomes:
            supervised.link = self._link
            supervised.hellos.append(fields)
            supervised.control(protocol.WELCOME, acknowledged=supervised.acknowledged)
            supervised.changed()
        else:
            self._link.close("no gateway here")

    def on_closed(self) -> None:
        if self._supervised.link is self._link:
            self._supervised.link = None
            self._supervised.files.handle_link_lost()
        self._supervised.changed()


@asynccontextmanager
async def supervised(root: Path, switchboard: SupervisorSwitchboard, **settings: Any) -> AsyncIterator[Supervised]:
    """A supervisor whose kernel is ready, unless a test asks for one that never is."""
    waits = settings.pop("waits", True)
    supervisor = Supervised(root, switchboard, **settings)
    try:
        if waits:
            await supervisor.ready()
        yield supervisor
    finally:
        await supervisor.close()
