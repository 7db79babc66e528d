"""Sends what calls.py asks for, over one httpx client: blocking, and for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import closing
from typing import TypeVar

import httpx
from httpx_sse import EventSource

from gateway.client import calls
from gateway.client.calls import Ask, Call, Patience, Pause, Reply
from gateway.client.cursors import Cursor
from gateway.client.errors import ClientError, not_reached

Value = TypeVar("Value")


class Transport:
    """Requests to one gateway. Every method raises ClientError."""

    def __init__(self, origin: calls.Origin, patience_s: float, http: httpx.Client) -> None:
        self.origin = origin
        self.http = http
        self._patience_s = patience_s

    def patience(self) -> Patience:
        """That of one call."""
        return Patience(self._patience_s)

    def ask(self, ask: Ask) -> Reply:
        """The answer, once there is one that is no error."""
        return self.do(calls.answered(ask, self.patience()))

    def do(self, call: Call[Value]) -> Value:
        """Bring a call to its end; returns what it returns."""
        with closing(calls.Driven(call)) as driven:
            while (step := driven.step) is not None:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    driven.go_on()
                    continue
                try:
                    reply = _reply(self.http.request(**self.origin.arguments(step)))
                except httpx.TransportError as error:
                    driven.fail(not_reached(self.origin.url, error))
                else:
                    driven.go_on(reply)
            return driven.value

    def items(self, cursor: Cursor[Value]) -> Generator[Value, None, None]:
        """What a cursor reads, over as many connections as it takes."""
        while (ask := cursor.ask()) is not None:
            failure: ClientError | Reply | None = None
            try:
                with self.http.stream(**self.origin.arguments(ask)) as response:
                    if response.status_code >= calls.REFUSED:
                        failure = _reply(response)
                    else:
                        for text in _texts(response):
                            yield from cursor.take(text)
            except httpx.TransportError as error:
                failure = not_reached(self.origin.url, error)
            pause = cursor.pause_after(failure)
            time.sleep(pause.seconds)

    def read(self, url: str) -> bytes:
        """The content of an image or file, whose URL may name a host that only browsers reach."""
        return self.ask(calls.artifact_ask(url)).content


def _texts(response: httpx.Response) -> Iterator[str]:
    if response.headers.get("Content-Type", "").startswith(calls.EVENT_STREAM):
        # A comment counts as an event without data.
        yield from (sent.data for sent in EventSource(response).iter_sse() if sent.data)
    else:
        lines = _Lines()
        for piece in response.iter_bytes():
            yield from lines.ended_by(piece)


class _Lines:
    """Lines of JSON from pieces. Only a line feed ends one, and a line without it was cut.

    httpx takes U+2028, U+0085 and others for line ends too. The mutable state is the line so far.
    """

    def __init__(self) -> None:
        self._begun: list[bytes] = []

    def ended_by(self, piece: bytes) -> list[str]:
        """The lines that are whole now."""
        *ends, begun = piece.split(b"\n")
        lines = []
        for end in ends:
            lines.append(b"".join((*self._begun, end)).decode(errors="replace"))
            self._begun = []
        self._begun.append(begun)
        return lines


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, response.headers, response.read())


class AsyncTransport:
    """Requests to one gateway, as Transport sends them."""

    def __init__(self, origin: calls.Origin, patience_s: float, http: httpx.AsyncClient) -> None:
        self.origin = origin
        self.http = http
        self._patience_s = patience_s

    def patience(self) -> Patience:
        """That of one call."""
        return Patience(self._patience_s)

    async def ask(self, ask: Ask) -> Reply:
        """The answer, once there is one that is no error."""
        return await self.do(calls.answered(ask, self.patience()))

    async def do(self, call: Call[Value]) -> Value:
        """Bring a call to its end; returns what it returns."""
        with closing(calls.Driven(call)) as driven:
            while (step := driven.step) is not None:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    driven.go_on()
                    continue
                try:
                    reply = await _async_reply(await self.http.request(**self.origin.arguments(step)))
                except httpx.TransportError as error:
                    driven.fail(not_reached(self.origin.url, error))
                else:
                    driven.go_on(reply)
            return driven.value

    async def items(self, cursor: Cursor[Value]) -> AsyncGenerator[Value, None]:
        """What a cursor reads, over as many connections as it takes."""
        while (ask := cursor.ask()) is not None:
            failure: ClientError | Reply | None = None
            try:
                async with self.http.stream(**self.origin.arguments(ask)) as response:
                    if response.status_code >= calls.REFUSED:
                        failure = await _async_reply(response)
                    else:
                        async for text in _async_texts(response):
                            for item in cursor.take(text):
                                yield item
            except httpx.TransportError as error:
                failure = not_reached(self.origin.url, error)
            pause = cursor.pause_after(failure)
            await asyncio.sleep(pause.seconds)

    async def read(self, url: str) -> bytes:
        """The content of an image or file, whose URL may name a host that only browsers reach."""
        return (await self.ask(calls.artifact_ask(url))).content


async def _async_texts(response: httpx.Response) -> AsyncIterator[str]:
    if response.headers.get("Content-Type", "").startswith(calls.EVENT_STREAM):
        async for sent in EventSource(response).aiter_sse():
            if sent.data:
                yield sent.data
    else:
        lines = _Lines()
        async for piece in response.aiter_bytes():
            for line in lines.ended_by(piece):
                yield line


async def _async_reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, response.headers, await response.aread())
