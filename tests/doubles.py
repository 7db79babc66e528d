"""Small working implementations of the ports, for tests that control time and see every frame."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import docker.errors

from kernel_image import protocol
from sessions.errors import EngineUnavailable
from sessions.model import KernelId
from sessions.ports import Fate, ForkedKernel, LaunchSpec, Link, LinkListener, ZygoteFigures
from sessions.settings import Limits


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds, for at most 30 s."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


@contextmanager
def refusals(sentence: str) -> Iterator[None]:
    """What `DockerEngine.call` makes of an engine's refusal, if there is a sentence for it."""
    try:
        yield
    except docker.errors.APIError as error:
        if not sentence:
            raise
        raise EngineUnavailable(sentence) from error


class ManualClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.at_s = 1000.0

    def monotonic(self) -> float:
        return self.at_s

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.at_s)


class RecordingLink:
    """`sessions.ports.Link` that records what was sent."""

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


class MemorySupervisor:
    """A sandbox's supervisor, seen from the gateway; the test decides what it says.

    The mutable state: the frames that are not acknowledged; the requests received, each once however often it was sent;
    those that have not ended; and the number of the kernel process. `files` are those that were written; the faults are
    `refused`, why the protocol refuses a file by its path, and `answers_files`.
    """

    def __init__(self, spec: LaunchSpec) -> None:
        self.boot_id = uuid4().hex
        self.generation = 0
        self.state = "starting"
        self.taken: list[str] = []
        self.codes: dict[str, str] = {}
        self.outstanding: list[str] = []
        self.finished: list[str] = []
        self.forwarded: str | None = None
        self.names_forwarded = True
        self.question: str | None = None
        self.last_seq = 0
        self.frames: dict[int, str | bytes] = {}
        self.metadata: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.refused: dict[str, str] = {}
        self.answers_files = True
        self.files_asked = 0
        self.answer: Callable[[str], object] = lambda _text: None
        self._writing: dict[str, tuple[str, bytearray]] = {}
        self._spec = spec

    def hello(self, **fields: Any) -> str:
        known = {"state": self.state, "generation": self.generation, "boot_id": self.boot_id}
        lists = {"outstanding": self.outstanding, "finished": self.finished}
        seqs = {"oldest_seq": min(self.frames, default=self.last_seq + 1), "next_seq": self.last_seq + 1}
        who = {"kernel_id": self._spec.kernel_id, "credential": self._spec.credential}
        forwarded = {"forwarded": self.forwarded, "question": self.question} if self.names_forwarded else {}
        return hello(**{**known, **lists, **forwarded, **seqs, **who, **fields})

    def take(self, frame: bytes) -> None:
        _, parts = protocol.decode_message(frame)
        header = json.loads(parts[0])
        if header["msg_type"] == "file":
            self.take_file("write", json.loads(parts[3]), parts[-1])
        elif header["msg_type"] != "execute_request":
            self.forwarded = header["msg_id"]
            self.question = None if header["msg_type"] == "input_reply" else self.question
        elif header["msg_id"] not in self.taken:
            self.taken.append(header["msg_id"])
            self.codes[header["msg_id"]] = json.loads(parts[3])["code"]
            self.metadata[header["msg_id"]] = json.loads(parts[2])
            self.outstanding.append(header["msg_id"])

    def take_file(self, op: str, fields: Mapping[str, Any], data: bytes = b"") -> None:
        """A request about a file that is written."""
        file_id = fields["id"]
        self.files_asked += 1
        if not self.answers_files or op == protocol.FILE_CLOSE:
            return
        answers: dict[str, Any] = {"id": file_id, "mtime_ns": 0, "bytes": 0}
        if op == protocol.FILE_CREATE:
            if why := self.refused.get(fields["path"]):
                self.answer(protocol.encode_control(protocol.FILE_FAILED, id=file_id, why=why))
                return
            self._writing[file_id] = (fields["path"], bytearray())
            answered = protocol.FILE_OPENED
        elif op == "write":
            self._writing[file_id][1].extend(data)
            answered, answers["offset"] = protocol.FILE_WRITTEN, len(self._writing[file_id][1])
        else:
            path, written = self._writing.pop(file_id)
            answered = protocol.FILE_COMMITTED
            answers |= {"bytes": len(written), "created": path not in self.files}
            self.files[path] = bytes(written)
        self.answer(protocol.encode_control(answered, **answers))

    def start_anew(self) -> None:
        """Its container is started again: it has forgotten everything, and its kernel is a new one."""
        self.boot_id = uuid4().hex
        self.generation += 1000
        self.forwarded = None
        self.last_seq = 0
        for known in (self.taken, self.outstanding, self.finished, self.frames):
            known.clear()

    def acknowledged(self, seq: int) -> None:
        self.frames = {number: frame for number, frame in self.frames.items() if number > seq}

    def end(self, msg_id: object) -> None:
        if msg_id in self.outstanding:
            self.outstanding.remove(str(msg_id))
            self.finished.append(str(msg_id))

    def keep(self, frame: Callable[[int], str | bytes]) -> str | bytes:
        """Number a frame, and keep it until it is acknowledged."""
        self.last_seq += 1
        self.frames[self.last_seq] = frame(self.last_seq)
        return self.frames[self.last_seq]


class _SupervisedLink(RecordingLink):
    """A link with a supervisor at its other end."""

    def __init__(self, supervisor: MemorySupervisor) -> None:
        super().__init__()
        self._supervisor = supervisor

    def send_binary(self, data: bytes) -> None:
        super().send_binary(data)
        if self.closed is None:
            self._supervisor.take(data)

    def send_text(self, text: str) -> None:
        super().send_text(text)
        fields = json.loads(text)
        if self.closed is None and fields["op"] in (protocol.ACK, protocol.WELCOME):
            self._supervisor.acknowledged(fields.get("seq", fields.get("acknowledged")))
        elif self.closed is None and fields["op"].startswith("file_"):
            self._supervisor.take_file(fields["op"], fields)


class MemoryEngine:
    """Provisioner and switchboard in one, whose supervisors say hello and `idle` when the test lets them.

    The state: `sandboxes` that exist; `specs` launched; the `supervisors` in them; `dialled` listeners by kernel; and
    the faults: `is_reachable`, `launches_fail`, `comes_up`.
    """

    name = "memory"

    def __init__(self) -> None:
        self.sandboxes: dict[KernelId, None] = {}
        self.specs: dict[KernelId, LaunchSpec] = {}
        self.supervisors: dict[KernelId, MemorySupervisor] = {}
        self.ports: dict[KernelId, Callable[[Link], LinkListener]] = {}
        self.dialled: dict[KernelId, tuple[LinkListener, RecordingLink]] = {}
        self.fates: dict[KernelId, Fate] = {}
        self.is_reachable = True
        self.comes_up = True
        self.launches_fail = 0
        self.most_at_once = 0
        self.leftovers_removed = False
        self.kept: set[KernelId] = set()
        self.forks: list[int] = []
        self.stopped_forking = ""

    # --- Provisioner --------------------------------------------------------------------------------------------------

    async def launch(self, spec: LaunchSpec) -> None:
        await self.check()
        if self.launches_fail:
            self.launches_fail -= 1
            raise EngineUnavailable("This launch was told to fail.") from OSError("the engine's words")
        self.specs[spec.kernel_id] = spec
        self.supervisors[spec.kernel_id] = MemorySupervisor(spec)
        self.sandboxes[spec.kernel_id] = None
        self.most_at_once = max(self.most_at_once, len(self.sandboxes))
        if self.comes_up:
            self.come_up(spec.kernel_id)

    async def list(self) -> list[KernelId]:
        await self.check()
        return [*self.sandboxes]

    async def kill(self, kernel_id: KernelId) -> None:
        await self.check()
        self.sandboxes.pop(kernel_id, None)

    async def fate(self, kernel_id: KernelId) -> Fate | None:
        return self.fates.get(kernel_id)

    async def fork(self, kernel_id: KernelId, number: int) -> ForkedKernel:
        assert kernel_id in self.sandboxes, number
        if not self.forks:
            raise EngineUnavailable("This fork was told to fail.")
        return ForkedKernel(self.forks.pop(0), {})

    def stop_forking(self, why: str) -> None:
        self.stopped_forking = why

    def warnings(self) -> tuple[str, ...]:
        return ()

    def zygote(self) -> ZygoteFigures | None:
        return None

    def missing_limits(self, seen: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
        return tuple(seen.get("missing", ())) if limits else ()

    async def check(self) -> None:
        if not self.is_reachable:
            raise EngineUnavailable

    # --- Switchboard --------------------------------------------------------------------------------------------------

    def open(self, kernel_id: KernelId, accept: Callable[[Link], LinkListener]) -> Path:
        self.ports[kernel_id] = accept
        return Path("/nowhere")

    def close(self, kernel_id: KernelId) -> None:
        self.ports.pop(kernel_id, None)
        self.disconnect(kernel_id)

    def release(self, kernel_id: KernelId) -> None:
        self.ports.pop(kernel_id, None)
        self.disconnect(kernel_id)

    def remove_leftovers(self, wanted: Collection[KernelId]) -> None:
        self.leftovers_removed = True
        self.kept = set(wanted)

    # --- what a test has supervisors do -------------------------------------------------------------------------------

    def come_up(self, kernel_id: KernelId) -> None:
        self.dial(kernel_id)
        self.start_process(kernel_id)

    def start_process(self, kernel_id: KernelId) -> None:
        """The next kernel process answers."""
        supervisor = self.supervisors[kernel_id]
        supervisor.generation += 1
        supervisor.state = "idle"
        self.say(kernel_id, protocol.STATE, state="idle", generation=supervisor.generation)

    def dial(self, kernel_id: KernelId, **fields: Any) -> None:
        """Connect, and send again the frames that are not acknowledged."""
        supervisor = self.supervisors[kernel_id]
        link = _SupervisedLink(supervisor)
        listener = self.ports[kernel_id](link)
        self.dialled[kernel_id] = (listener, link)
        supervisor.answer = lambda text: asyncio.get_running_loop().call_soon(listener.on_text, text)
        listener.on_text(supervisor.hello(**fields))
        for _, frame in sorted(supervisor.frames.items()):
            self._send(kernel_id, frame)

    def say(self, kernel_id: KernelId, op: str, **fields: Any) -> None:
        supervisor = self.supervisors[kernel_id]
        if op in (protocol.DONE, protocol.DIED):
            supervisor.end(fields.get("msg_id"))
        self._send(kernel_id, supervisor.keep(lambda seq: protocol.encode_control(op, seq=seq, **fields)))

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
        def frame(seq: int) -> bytes:
            return message_frame(seq, msg_type, parent_id, content, channel=channel, buffers=buffers)

        kept = self.supervisors[kernel_id].keep(frame)
        if msg_type == "input_request" and isinstance(kept, bytes):
            _, parts = protocol.decode_message(protocol.split_number(kept)[1])
            self.supervisors[kernel_id].question = json.loads(parts[0])["msg_id"]
        self._send(kernel_id, kept)

    def link(self, kernel_id: KernelId) -> RecordingLink:
        return self.dialled[kernel_id][1]

    def disconnect(self, kernel_id: KernelId) -> None:
        if kernel_id in self.dialled:
            self.dialled.pop(kernel_id)[0].on_closed()

    def end_sandbox(self, kernel_id: KernelId, *, oom: bool = False) -> None:
        """End its container, as if it were killed from outside."""
        self.fates[kernel_id] = Fate(137, oom)
        self.disconnect(kernel_id)

    def _send(self, kernel_id: KernelId, frame: str | bytes) -> None:
        if kernel_id not in self.dialled:
            return
        listener = self.dialled[kernel_id][0]
        if isinstance(frame, str):
            listener.on_text(frame)
        else:
            listener.on_binary(frame)


class Lifeline:
    """A gateway's access to a port. Once it is cut, as by a crash, every call through it ends the task that makes it.

    A timer of the gateway that has crashed may still start one. If it waited for ever, nothing would refer to it, and
    it would be called destroyed in the middle of another test.
    """

    def __init__(self, port: object) -> None:
        self._port = port
        self.is_cut = False

    @classmethod
    def to(cls, port: object) -> Any:
        return cast("Any", cls(port))

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._port, name)
        if not self.is_cut or not callable(member):
            return member
        return _end if inspect.iscoroutinefunction(member) else lambda *_args, **_fields: None


async def _end(*_args: object, **_fields: object) -> None:
    raise asyncio.CancelledError
