"""One connection to a kernel's socket. Any code in the sandbox may have dialled it; the hello decides who that is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from kernel_image import protocol
from sessions.errors import ProtocolViolation
from sessions.kernels.kernel import Kernel
from sessions.kernels.messages import decode_object
from sessions.ports import Link

_MAX_CONTROL_CHARACTERS = 1 << 20
_MAX_HELLO_CHARACTERS = 64 << 10

log = structlog.get_logger()


class Handshake:
    """`sessions.ports.LinkListener`. The mutable state: whether it was welcomed, and the deadline of the hello."""

    def __init__(self, kernel: Kernel, link: Link, hello_timeout_s: float) -> None:
        self._kernel = kernel
        self._link = link
        self._is_welcome = False
        self._deadline: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            hello_timeout_s, kernel.refuse, link, "no hello in time"
        )

    def on_binary(self, data: bytes) -> asyncio.Task[None] | None:
        """Handle a Jupyter message, of a supervisor that was welcomed."""
        if not self._is_welcome:
            self._refuse("a message before the hello")
            return None
        return self._guarded(len(data), self._kernel.handle_binary, data)

    def on_text(self, text: str) -> asyncio.Task[None] | None:
        """Handle a control message; the first one must be the hello."""
        if len(text) > (_MAX_CONTROL_CHARACTERS if self._is_welcome else _MAX_HELLO_CHARACTERS):
            self._refuse("an overlong control message")
            return None
        if self._is_welcome:
            return self._guarded(len(text), lambda: self._kernel.handle_control(decode_object(text)))
        if self._deadline is None:
            return None  # already refused; the connection is being closed
        try:
            hello = decode_object(text)
        except ProtocolViolation:
            hello = {}
        self._disarm()
        try:
            self._is_welcome = hello.get("op") == protocol.HELLO and self._kernel.handle_hello(hello, self._link)
        except Exception:
            log.exception("hello_not_handled", kernel_id=self._kernel.kernel_id)
            self._kernel.refuse(self._link, "a hello that could not be handled")
        if hello.get("op") != protocol.HELLO:
            self._kernel.refuse(self._link, "no hello")
        return None

    def on_closed(self) -> None:
        """The connection is gone."""
        self._disarm()
        self._kernel.handle_link_closed(self._link)

    def _guarded(self, size_bytes: int, handle: Callable[..., None], *args: Any) -> asyncio.Task[None] | None:
        """Handle a frame; a violation ends the kernel, a flood is slowed down and waits for its turn."""
        throttle = self._kernel.throttle
        if not throttle.is_free(size_bytes):
            return asyncio.ensure_future(self._handle_in_turn(size_bytes, handle, *args))
        pause_s = throttle.metered(self._handle, handle, *args)
        return asyncio.ensure_future(asyncio.sleep(pause_s)) if pause_s > 0 and not self._kernel.violation else None

    async def _handle_in_turn(self, size_bytes: int, handle: Callable[..., None], *args: Any) -> None:
        await asyncio.sleep(await self._kernel.throttle.metered_in_turn(size_bytes, self._handle, handle, *args))

    def _handle(self, handle: Callable[..., None], *args: Any) -> None:
        try:
            handle(*args)
        except (ProtocolViolation, protocol.FrameError) as error:
            self._kernel.violate(str(error).rstrip("."))
        except Exception:
            # Not once more over the next link: what it has changed before it failed is not known.
            log.exception("frame_not_handled", kernel_id=self._kernel.kernel_id)
            self._kernel.fail()

    def _refuse(self, reason: str) -> None:
        if self._deadline is not None or self._is_welcome:
            self._disarm()
            self._is_welcome = False
            self._kernel.refuse(self._link, reason)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
