"""Small real implementations of the ports, for tests that own the time and see every frame."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from kernel_image import protocol
from sessions.errors import EngineUnavailable
from sessions.model import Fate, KernelId, LaunchSpec, Sandbox
from sessions.ports import Link, LinkListener


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, while the loop goes on."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


class ManualClock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.at_s = 1000.0

    def monotonic(self) -> float:
        return self.at_s

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.at_s)


class RecordingLink:
    """`sessions.ports.Link` that remembers what was sent."""

    def __init__(self) -> None:
        self.binary: list[bytes] = []
        self.controls: list[dict[str, Any]] = []
        self.closed: str | None = None

    def send_binary(self, data: bytes) -> None:
        if self.closed is None:
            self.binary.append(data)

    def send_text(self, text: str) -> None:
        if self.closed is None:
            self.controls.append(json.loads(text))

    def close(self, reason: str) -> None:
        if self.closed is None:
            self.closed = reason

    def sent(self, op: str) -> list[dict[str, Any]]:
        return [fields for fields in self.controls if fields["op"] == op]

    def request_ids(self) -> list[str]:
        """The msg_ids of all requests sent, in order."""
        return [json.loads(protocol.decode_message(frame)[1][0])["msg_id"] for frame in self.binary]


def message_frame(
    seq: int,
    msg_type: str,
    parent_id: str,
    content: Mapping[str, Any] | None = None,
    *,
    channel: str = "iopub",
    buffers: tuple[bytes, ...] = (),
) -> bytes:
    """A numbered frame as a supervisor sends it."""
    parts = [{"msg_type": msg_type, "msg_id": uuid4().hex}, {"msg_id": parent_id}, {}, content or {}]
    frame = protocol.encode_message(channel, [*(json.dumps(part).encode() for part in parts), *buffers])
    return protocol.number_frame(seq, frame)


def hello(**fields: Any) -> str:
    """The hello of an honest supervisor, once `fields` say who it is."""
    return protocol.encode_control(protocol.HELLO, **{"protocol": protocol.PROTOCOL_VERSION, "boot_id": "b1", **fields})


class MemoryEngine:
    """Provisioner and switchboard in one, whose supervisors say hello and `idle` when the test lets them.

    The state: `sandboxes` that exist; `specs` launched; `dialled` listeners by kernel; and the faults: `is_reachable`,
    `launches_fail`, `comes_up`.
    """

    name = "memory"

    def __init__(self) -> None:
        self.sandboxes: dict[KernelId, Sandbox] = {}
        self.specs: dict[KernelId, LaunchSpec] = {}
        self.ports: dict[KernelId, Callable[[Link], LinkListener]] = {}
        self.dialled: dict[KernelId, tuple[LinkListener, RecordingLink]] = {}
        self.seqs: dict[KernelId, int] = {}
        self.fates: dict[KernelId, Fate] = {}
        self.is_reachable = True
        self.comes_up = True
        self.launches_fail = 0
        self.most_at_once = 0
        self.leftovers_removed = False
        self.kept: set[KernelId] = set()

    # --- Provisioner --------------------------------------------------------------------------------------------------

    async def launch(self, spec: LaunchSpec) -> Sandbox:
        await self.check()
        if self.launches_fail:
            self.launches_fail -= 1
            raise EngineUnavailable("This launch was told to fail.")
        self.specs[spec.kernel_id] = spec
        self.sandboxes[spec.kernel_id] = Sandbox(spec.kernel_id, spec.gateway_id, "1")
        self.most_at_once = max(self.most_at_once, len(self.sandboxes))
        if self.comes_up:
            self.come_up(spec.kernel_id)
        return self.sandboxes[spec.kernel_id]

    async def list(self) -> list[Sandbox]:
        await self.check()
        return [*self.sandboxes.values()]

    async def kill(self, kernel_id: KernelId) -> None:
        await self.check()
        self.sandboxes.pop(kernel_id, None)

    async def fate(self, kernel_id: KernelId) -> Fate | None:
        return self.fates.get(kernel_id)

    async def check(self) -> None:
        if not self.is_reachable:
            raise EngineUnavailable

    # --- Switchboard --------------------------------------------------------------------------------------------------

    def open(self, kernel_id: KernelId, accept: Callable[[Link], LinkListener]) -> Path:
        self.ports[kernel_id] = accept
        return Path("/nowhere")

    def close(self, kernel_id: KernelId) -> None:
        self.ports.pop(kernel_id, None)
        self.hang_up(kernel_id)

    def let_go(self, kernel_id: KernelId) -> None:
        self.ports.pop(kernel_id, None)
        self.hang_up(kernel_id)

    def remove_leftovers(self, wanted: Collection[KernelId]) -> None:
        self.leftovers_removed = True
        self.kept = set(wanted)

    # --- what a test has supervisors do -------------------------------------------------------------------------------

    def come_up(self, kernel_id: KernelId) -> None:
        self.dial(kernel_id)
        self.say(kernel_id, protocol.STATE, state="idle", generation=1)

    def dial(self, kernel_id: KernelId, **fields: Any) -> None:
        link = RecordingLink()
        listener = self.ports[kernel_id](link)
        self.dialled[kernel_id] = (listener, link)
        listener.on_text(hello(kernel_id=kernel_id, credential=self.specs[kernel_id].credential, **fields))

    def say(self, kernel_id: KernelId, op: str, **fields: Any) -> None:
        seq = self.seqs[kernel_id] = self.seqs.get(kernel_id, 0) + 1
        self.dialled[kernel_id][0].on_text(protocol.encode_control(op, seq=seq, **fields))

    def publish(
        self,
        kernel_id: KernelId,
        msg_type: str,
        parent_id: str,
        content: Mapping[str, Any] | None = None,
        *,
        channel: str = "iopub",
        buffers: tuple[bytes, ...] = (),
    ) -> None:
        seq = self.seqs[kernel_id] = self.seqs.get(kernel_id, 0) + 1
        frame = message_frame(seq, msg_type, parent_id, content, channel=channel, buffers=buffers)
        self.dialled[kernel_id][0].on_binary(frame)

    def link(self, kernel_id: KernelId) -> RecordingLink:
        return self.dialled[kernel_id][1]

    def hang_up(self, kernel_id: KernelId) -> None:
        if kernel_id in self.dialled:
            self.dialled.pop(kernel_id)[0].on_closed()
