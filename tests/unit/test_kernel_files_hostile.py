"""What a hostile or silent supervisor says about files: it fails the one request, and never more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from kernel_image import protocol
from sessions.errors import InvalidRequest, NotFound, TooManyRequests, Unavailable
from sessions.kernels.files import SandboxFileReader, SandboxFileWriter, SupervisorFiles
from sessions.ports import Link
from sessions.settings import Timeouts

PIECE = protocol.FILE_PIECE_BYTES
ENTRY = {"bytes": 10, "mtime_ns": 0}


class Supervisor:
    """Answers what `answers` makes of each question, which is the message's fields; what it was `asked` is kept."""

    def __init__(self, timeouts: Timeouts) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answers: list[Callable[[dict[str, Any]], None]] = []
        self.has_link = True
        self.files = SupervisorFiles(self._linked, timeouts.file_answer_timeout_s)

    def _linked(self) -> Link:
        if not self.has_link:
            raise Unavailable
        return self

    def send_text(self, text: str) -> None:
        self._take(json.loads(text))

    def send_binary(self, frame: bytes) -> None:
        _, parts = protocol.decode_message(frame)
        self._take({"op": "piece", **json.loads(parts[3])})

    def close(self, reason: str) -> None:
        raise AssertionError(reason)

    def _take(self, fields: dict[str, Any]) -> None:
        self.asked.append(fields)
        if self.answers and fields["op"] != protocol.FILE_CLOSE:
            self.answers.pop(0)(fields)

    def says(self, op: str, **said: Any) -> Callable[[dict[str, Any]], None]:
        return lambda fields: self.files.handle_control({"op": op, "id": fields["id"], **said})

    def sends(self, piece: bytes, *more: bytes, channel: str = "file", **said: Any) -> Callable[[dict[str, Any]], None]:
        def answer(fields: dict[str, Any]) -> None:
            content = json.dumps({"id": fields["id"], **said}).encode()
            self.files.handle_frame(protocol.encode_message(channel, [b"{}", b"{}", b"{}", content, piece, *more]))

        return answer

    def ops(self) -> list[str]:
        return [fields["op"] for fields in self.asked]

    async def opened(self, **entry: Any) -> SandboxFileReader:
        self.answers.insert(0, self.says(protocol.FILE_OPENED, **{**ENTRY, **entry}))
        return await self.files.open("t")

    async def created(self) -> SandboxFileWriter:
        self.answers.insert(0, self.says(protocol.FILE_OPENED, **ENTRY))
        return await self.files.create("t", 100)

    async def works(self) -> None:
        """Whether it still lists files, and nothing is left of what went before."""
        self.answers = [self.says(protocol.FILE_ENTRIES, entries=[["t", 1, 1]], more=False)]
        assert len(await self.files.list()) == 1
        assert repr(self.files) == "<SupervisorFiles 0 under way, 0 without an answer>"


@pytest.fixture
def supervisor(timeouts: Timeouts) -> Supervisor:
    return Supervisor(timeouts)


WRONG_LISTS: list[dict[str, Any]] = [
    {},
    {"entries": None, "more": False},
    {"entries": {}, "more": False},
    {"entries": [], "more": 1},
    {"entries": [], "more": True},
    {"entries": [["t", 1, 1]] * 1001, "more": False},
    {"entries": ["t"], "more": False},
    {"entries": [["t", 1]], "more": False},
    {"entries": [["t", 1, 1, 1]], "more": False},
    {"entries": [["../t", 1, 1]], "more": False},
    {"entries": [["/t", 1, 1]], "more": False},
    {"entries": [["", 1, 1]], "more": False},
    {"entries": [["x" * 1025, 1, 1]], "more": False},
    {"entries": [[7, 1, 1]], "more": False},
    {"entries": [["t", -1, 1]], "more": False},
    {"entries": [["t", True, 1]], "more": False},
    {"entries": [["t", 1.5, 1]], "more": False},
    {"entries": [["t", 10**30, 1]], "more": False},
    {"entries": [["t", 1, "1"]], "more": False},
    {"entries": [["t", 1, None]], "more": False},
    {"entries": [["t", 1, 1], ["t", 1, 1]], "more": False},
    {"entries": [["u", 1, 1], ["t", 1, 1]], "more": False},
]


@pytest.mark.parametrize("wrong", WRONG_LISTS, ids=lambda wrong: str(wrong)[:50])
async def test_a_wrong_list_fails_that_request_alone(supervisor: Supervisor, wrong: dict[str, Any]) -> None:
    other = asyncio.ensure_future(supervisor.files.remove("other"))
    await asyncio.sleep(0)
    supervisor.answers = [supervisor.says(protocol.FILE_ENTRIES, **wrong)]
    with pytest.raises(Unavailable, match="makes no sense"):
        await supervisor.files.list()
    supervisor.says(protocol.FILE_REMOVED)(supervisor.asked[0])
    await other
    await supervisor.works()


async def test_a_list_without_end_is_cut_off(supervisor: Supervisor) -> None:
    supervisor.answers = [
        supervisor.says(protocol.FILE_ENTRIES, entries=[[f"{page:03}", 1, 1]], more=True) for page in range(100)
    ]
    assert len(await supervisor.files.list()) == 20
    assert [fields["after"] for fields in supervisor.asked] == ["", *(f"{page:03}" for page in range(19))]


@pytest.mark.parametrize("mtime_ns", [10**40, -(10**40)])
async def test_a_time_that_no_calendar_has_is_the_nearest(supervisor: Supervisor, mtime_ns: int) -> None:
    reader = await supervisor.opened(mtime_ns=mtime_ns)
    nearest = datetime.max if mtime_ns > 0 else datetime.min  # noqa: DTZ901 - made aware below
    assert reader.entry.modified_at == nearest.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("piece", "said"),
    [
        (b"", {"offset": 0}),
        (b"x" * 11, {"offset": 0}),
        (b"x", {"offset": 1}),
        (b"x", {"offset": False}),
        (b"x", {"offset": "0"}),
        (b"x", {}),
    ],
)
async def test_a_wrong_piece_fails_that_file_alone(supervisor: Supervisor, piece: bytes, said: dict[str, Any]) -> None:
    reader = await supervisor.opened()
    supervisor.answers = [supervisor.sends(piece, **said)]
    with pytest.raises(Unavailable):
        await reader.read()
    assert supervisor.ops()[-1] == protocol.FILE_CLOSE
    with pytest.raises(Unavailable):
        await reader.read()
    await supervisor.works()


@pytest.mark.timeouts(file_answer_timeout_s=0.05)
async def test_a_piece_larger_than_any_is_not_taken(supervisor: Supervisor) -> None:
    for size in (PIECE + 1, PIECE + (1 << 20)):
        reader = await supervisor.opened(bytes=1 << 30)
        supervisor.answers = [supervisor.sends(b"x" * size, offset=0)]
        with pytest.raises(Unavailable):
            await reader.read()
    await supervisor.works()


@pytest.mark.parametrize("wrong", ["another channel", "more parts", "a control message"])
async def test_an_answer_of_another_kind_is_wrong(supervisor: Supervisor, wrong: str) -> None:
    reader = await supervisor.opened()
    answers = {
        "another channel": supervisor.sends(b"x", channel="iopub", offset=0),
        "more parts": supervisor.sends(b"x", b"y", offset=0),
        "a control message": supervisor.says(protocol.FILE_OPENED, **ENTRY),
    }
    supervisor.answers = [answers[wrong]]
    with pytest.raises(Unavailable, match="makes no sense"):
        await reader.read()


@pytest.mark.parametrize("said", [{}, {"offset": 2}, {"offset": "1"}, {"offset": True}])
async def test_a_wrong_count_of_what_is_written_fails_that_file_alone(
    supervisor: Supervisor, said: dict[str, Any]
) -> None:
    writer = await supervisor.created()
    supervisor.answers = [supervisor.says(protocol.FILE_WRITTEN, **said)]
    with pytest.raises(Unavailable):
        await writer.write(b"x")
    await supervisor.works()


@pytest.mark.parametrize(
    "said", [{"created": True}, {"bytes": 7, "mtime_ns": 1, "created": True}, {"bytes": 0, "mtime_ns": 1, "created": 1}]
)
async def test_a_wrong_commit_fails_that_file_alone(supervisor: Supervisor, said: dict[str, Any]) -> None:
    writer = await supervisor.created()
    supervisor.answers = [supervisor.says(protocol.FILE_COMMITTED, **said)]
    with pytest.raises(Unavailable):
        await writer.commit()
    writer.close()
    await supervisor.works()


@pytest.mark.parametrize("why", ["", "nonsense", None, 7, ["io"], {"a": 1}])
async def test_a_refusal_without_a_known_reason_is_unavailable(supervisor: Supervisor, why: Any) -> None:
    supervisor.answers = [supervisor.says(protocol.FILE_FAILED, why=why)]
    with pytest.raises(Unavailable):
        await supervisor.files.open("t")
    await supervisor.works()


@pytest.mark.parametrize("transfer_id", ["nobody", None, 7, ["1"], {}])
async def test_answers_that_nobody_waits_for_are_dropped(supervisor: Supervisor, transfer_id: Any) -> None:
    asking = asyncio.ensure_future(supervisor.files.remove("t"))
    await asyncio.sleep(0)
    supervisor.files.handle_control({"op": protocol.FILE_REMOVED, "id": transfer_id})
    supervisor.files.handle_control({"op": protocol.FILE_FAILED, "why": "io", "id": transfer_id})
    supervisor.sends(b"x", offset=0)({"id": transfer_id})
    await asyncio.sleep(0)
    assert not asking.done()
    supervisor.says(protocol.FILE_REMOVED)(supervisor.asked[0])
    supervisor.says(protocol.FILE_FAILED, why="io")(supervisor.asked[0])
    await asking


@pytest.mark.parametrize("frame", [b"", b"x" * 100, b"\xff" * 100])
def test_frames_that_are_none_are_dropped(supervisor: Supervisor, frame: bytes) -> None:
    supervisor.files.handle_frame(frame)
    supervisor.files.handle_frame(protocol.encode_message("file", [b"{}", b"{}", b"{}", frame, b""]))
    supervisor.files.handle_frame(memoryview(protocol.encode_message("file", [b"", b"", b"", b'{"id": []}', b""])))


@pytest.mark.timeouts(file_answer_timeout_s=0.02)
async def test_a_silent_supervisor_is_not_waited_for_for_ever(supervisor: Supervisor) -> None:
    with pytest.raises(Unavailable, match="in time"):
        await supervisor.files.open("t")
    # It may have opened the file after all.
    assert supervisor.ops() == [protocol.FILE_OPEN, protocol.FILE_CLOSE]
    await supervisor.works()


async def test_a_lost_link_fails_what_is_under_way_and_nothing_later(supervisor: Supervisor) -> None:
    reader, writer = await supervisor.opened(), await supervisor.created()
    asking = [asyncio.ensure_future(work) for work in (reader.read(), supervisor.files.list(), writer.write(b"x"))]
    await asyncio.sleep(0)
    asked = len(supervisor.asked)
    supervisor.files.handle_link_lost()
    for task in asking:
        with pytest.raises(Unavailable, match="connection broke"):
            await task
    # Another link may carry another supervisor's answers: what began on the old one is over.
    with pytest.raises(Unavailable, match="connection broke"):
        await reader.read()
    reader.close()
    writer.close()
    assert len(supervisor.asked) == asked
    await supervisor.works()


async def test_without_a_link_everything_fails_at_once(supervisor: Supervisor) -> None:
    reader = await supervisor.opened()
    supervisor.has_link = False
    for work in (reader.read(), supervisor.files.list(), supervisor.files.create("t", 5)):
        with pytest.raises(Unavailable):
            await work
    reader.close()
    supervisor.has_link = True
    await supervisor.works()


async def test_who_stops_waiting_leaves_nothing_behind(supervisor: Supervisor) -> None:
    reader = await supervisor.opened()
    for work in (reader.read(), supervisor.files.open("t"), supervisor.files.list()):
        task = asyncio.ensure_future(work)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert supervisor.ops().count(protocol.FILE_CLOSE) == 3
    await supervisor.works()


async def test_places_come_back_however_a_transfer_ends(supervisor: Supervisor) -> None:
    for _ in range(20):
        supervisor.answers = [supervisor.says(protocol.FILE_FAILED, why="not_found")]
        with pytest.raises(NotFound):
            await supervisor.files.open("t")
        (await supervisor.opened()).close()
        (await supervisor.created()).close()
        with pytest.raises(InvalidRequest):
            await supervisor.files.open("../t")
    for _ in range(8):
        await supervisor.opened()
    with pytest.raises(TooManyRequests):
        await supervisor.files.open("t")
