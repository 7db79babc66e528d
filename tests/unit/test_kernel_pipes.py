"""What comes through the pipes of a kernel that is not ours. Code can write anything into them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kernel_image.kernel_pipes import KernelPipes

LONGEST_LINE_BYTES = 1000


class Pipes:
    """The pipes, their write ends as copies of the test's own, and what was published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.pipes = KernelPipes(
            lambda msg_type, content, _: self.published.append((msg_type, content)), LONGEST_LINE_BYTES
        )
        self.stdout, self.stderr, self.messages = (os.dup(end) for end in self.pipes.write_ends)
        self.pipes.close_write_ends()
        self.pipes.publish_from_now()

    def write(self, descriptor: int, data: bytes) -> None:
        assert os.write(descriptor, data) == len(data)
        self.pipes.read_written()

    def texts(self) -> list[tuple[str, str]]:
        return [(content["name"], content["text"]) for msg_type, content in self.published if msg_type == "stream"]

    def close(self) -> None:
        self.pipes.close()
        for descriptor in (self.stdout, self.stderr, self.messages):
            os.close(descriptor)


@pytest.fixture
async def pipes() -> AsyncIterator[Pipes]:
    pipes = Pipes()
    yield pipes
    pipes.close()


def line(msg_type: str, **content: Any) -> bytes:
    return json.dumps({"type": msg_type, "content": content}).encode() + b"\n"


async def test_the_standard_streams_are_texts_although_a_character_comes_in_two_parts(pipes: Pipes) -> None:
    pipes.write(pipes.stdout, b"a\xc3")
    pipes.write(pipes.stderr, b"\xff")
    pipes.write(pipes.stdout, b"\xa4")
    assert pipes.texts() == [("stdout", "a"), ("stderr", "\ufffd"), ("stdout", "ä")]


async def test_messages_are_lines_of_json_however_they_are_cut(pipes: Pipes) -> None:
    whole = line("stream", name="stdout", text="x\n") + line("display_data", data={})
    for byte in whole:
        pipes.write(pipes.messages, bytes([byte]))
    assert pipes.published == [("stream", {"name": "stdout", "text": "x\n"}), ("display_data", {"data": {}})]


async def test_lines_that_come_together_are_one_message_for_each_stream_in_turn(pipes: Pipes) -> None:
    lines = [line("stream", name=name, text=name[3]) for name in ("stdout", "stdout", "stderr", "stdout")]
    pipes.write(pipes.messages, b"".join([*lines[:3], line("display_data"), lines[3]]))
    assert pipes.texts() == [("stdout", "oo"), ("stderr", "e"), ("stdout", "o")]
    assert [msg_type for msg_type, _ in pipes.published] == ["stream", "stream", "display_data", "stream"]


@pytest.mark.parametrize(
    "written",
    [
        b"\n",
        b"no json\n",
        b"[1]\n",
        b"null\n",
        b'{"type": "stream"}\n',
        b'{"type": "stream", "content": {"name": "stdout"}}\n',
        b'{"type": ["stream"], "content": {}}\n',
        b'{"type": "stream", "content": []}\n',
        b'{"type": "stream", "content": {}, "metadata": 1}\n',
        b'{"type": "execute_reply", "content": {}}\n',
        b'{"type": "status", "content": {"execution_state": "idle"}}\n',
        b'{"type": "stream", "content": ' + b"[" * 900 + b"\n",
        b'{"type": "stream", "content": {"text": "' + b"x" * LONGEST_LINE_BYTES + b'"}}\n',
        b"\xff\xfe\n",
    ],
)
async def test_what_is_no_message_is_left_out_and_the_next_one_is_not(pipes: Pipes, written: bytes) -> None:
    pipes.write(pipes.messages, written + line("stream", name="stdout", text="next"))
    assert pipes.texts() == [("stdout", "next")]


async def test_what_is_written_without_end_is_read_up_to_now(pipes: Pipes) -> None:
    async def write_on() -> None:
        while True:
            os.write(pipes.stdout, b"x" * 1000)
            await asyncio.sleep(0)

    os.write(pipes.stdout, b"x" * 10_000)
    writing = asyncio.ensure_future(write_on())
    pipes.pipes.read_written()
    assert sum(len(text) for _, text in pipes.texts()) == 10_000
    writing.cancel()


async def test_the_kernels_own_words_before_it_is_ready_are_nobodys() -> None:
    published: list[str] = []
    pipes = KernelPipes(lambda _, content, __: published.append(content["text"]), LONGEST_LINE_BYTES)
    os.write(pipes.write_ends[1], b"a warning")
    await asyncio.sleep(0)
    os.write(pipes.write_ends[1], b"another")
    pipes.publish_from_now()
    os.write(pipes.write_ends[1], b"the code's")
    pipes.read_written()
    assert published == ["the code's"]
    pipes.close()


async def test_output_comes_by_itself_and_an_end_of_it_is_no_fault(pipes: Pipes) -> None:
    os.write(pipes.stdout, b"at once")
    async with asyncio.timeout(30):
        while not pipes.texts():
            await asyncio.sleep(0.001)
    for descriptor in (pipes.stdout, pipes.stderr, pipes.messages):
        os.close(descriptor)
    pipes.stdout, pipes.stderr, pipes.messages = (os.open(os.devnull, os.O_RDONLY) for _ in range(3))
    pipes.pipes.read_written()
    assert pipes.texts() == [("stdout", "at once")]
