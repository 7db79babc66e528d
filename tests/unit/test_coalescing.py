"""Output in many small pieces: nothing of it is lost, reordered or held up for long."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from kernel_image.coalescing import Coalescer

HEAD = [b'{"msg_type": "stream"}', b"{}", b"{}"]


class Out:
    """What has been sent, as (request, stream, text); and the coalescer that sends it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str]] = []
        self.coalescer = Coalescer[str](self._put)

    def say(self, text: str, name: str = "stdout", request: str = "r") -> None:
        parts = [*HEAD, json.dumps({"name": name, "text": text}).encode()]
        self.put(parts, request)

    def put(self, parts: list[bytes], request: str = "r") -> None:
        """As its user does: what is not held back goes out behind what is."""
        if not self.coalescer.add(parts, request):
            self.coalescer.flush()
            self._put(parts, request)

    def _put(self, parts: list[bytes], request: str) -> None:
        assert parts[:3] == HEAD
        content: dict[str, Any] = json.loads(parts[3])
        self.sent.append((request, content["name"], content["text"]))


@pytest.mark.asyncio
async def test_the_first_piece_goes_out_at_once_and_those_behind_it_together() -> None:
    out = Out()
    for text in ("a", "b", "c"):
        out.say(text)
    assert out.sent == [("r", "stdout", "a")]
    out.coalescer.flush()
    assert out.sent == [("r", "stdout", "a"), ("r", "stdout", "bc")]


@pytest.mark.asyncio
async def test_what_is_held_back_goes_out_by_itself() -> None:
    out = Out()
    out.say("a")
    out.say("b")
    async with asyncio.timeout(5):
        while len(out.sent) < 2:
            await asyncio.sleep(0.001)
    assert out.sent[1] == ("r", "stdout", "b")


@pytest.mark.asyncio
async def test_streams_and_requests_are_kept_apart_and_in_order() -> None:
    out = Out()
    for name, request in (("stdout", "r"), ("stdout", "r"), ("stderr", "r"), ("stdout", "r"), ("stdout", "s")):
        out.say("x", name, request)
    out.coalescer.flush()
    expected = [("r", "stdout"), ("r", "stdout"), ("r", "stderr"), ("r", "stdout"), ("s", "stdout")]
    assert [said[:2] for said in out.sent] == expected


@pytest.mark.asyncio
async def test_a_large_piece_goes_out_as_it_is_behind_the_small_ones() -> None:
    out = Out()
    for text in ("a", "b", "c" * 100_000):
        out.say(text)
    assert [len(text) for _, _, text in out.sent] == [1, 1, 100_000]


@pytest.mark.asyncio
async def test_no_message_becomes_large_by_coalescing() -> None:
    out = Out()
    for _ in range(100):
        out.say("x" * 1000)
    out.coalescer.flush()
    assert sum(len(text) for _, _, text in out.sent) == 100_000
    assert max(len(text) for _, _, text in out.sent) < 40_000


@pytest.mark.asyncio
async def test_lone_surrogates_pass() -> None:
    out = Out()
    for text in ("a", "\ud800", "é"):
        out.say(text)
    out.coalescer.flush()
    assert out.sent[1:] == [("r", "stdout", "\ud800é")]


@pytest.mark.asyncio
@pytest.mark.parametrize("content", [b"", b"[]", b'{"name": "stdout"}', b'{"name": 1, "text": "b"}'])
async def test_what_is_no_stream_message_is_not_touched(content: bytes) -> None:
    out = Out()
    out.say("a")
    assert not out.coalescer.add([*HEAD, content], "r")
