"""A supervisor's connection that is read only as fast as the kernel's clients take what is published to them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sessions.kernels.kernel import Kernel
from sessions.kernels.link.handshake import Handshake
from sessions.ports import Link
from sessions.settings import Timeouts


class PacedHandshake(Handshake):
    """The usual handshake, at a pace: `room` says what to await before the next message; None for nothing."""

    def __init__(self, kernel: Kernel, link: Link, room: Callable[[], asyncio.Task[None] | None]) -> None:
        super().__init__(kernel, link, Timeouts().hello_timeout_s)
        self._room = room

    def on_binary(self, data: bytes) -> Awaitable[None] | None:  # type: ignore[override]
        """Handle a Jupyter message; the next one waits until there is room for it."""
        waits = [wait for wait in (super().on_binary(data), self._room()) if wait is not None]
        return _all(waits) if waits else None


async def _all(waits: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(waits)
