"""A kernel whose whole conversation is passed on as it is, instead of being folded into runs.

The handshake, the frame numbers and the credential check are those of `sessions.kernels.kernel`. Nothing here has to
be committed, so every frame is acknowledged as soon as it has been handled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from kernel_image import protocol
from sessions.kernels.handshake import Handshake
from sessions.kernels.kernel import Kernel, KernelState
from sessions.kernels.outcomes import Died, died_of
from sessions.kernels.outstanding import RequestListener
from sessions.model import KernelId
from sessions.ports import Clock, Link
from sessions.settings import Timeouts


class RelayListener(Protocol):
    """Whom the conversation is passed on to."""

    def on_message(self, channel: str, parts: list[bytes]) -> None:
        """A message of the kernel's, its layout checked and nothing else."""
        ...

    def on_kernel_died(self, died: Died) -> None:
        """The kernel process has ended. The supervisor starts another one by itself."""
        ...


class RelayedKernel(Kernel):
    """A kernel, and who listens to all that it says."""

    def __init__(
        self, kernel_id: KernelId, kernel_name: str, credential: str, clock: Clock, listener: RelayListener
    ) -> None:
        super().__init__(kernel_id, kernel_name, credential, clock, Timeouts())
        self._listener = listener

    def run(self, msg_id: str, parts: Sequence[bytes], listener: RequestListener) -> None:
        """Send an execute_request; again when the link breaks before it has arrived."""
        frame = protocol.encode_message("shell", parts)
        self._requests.add(msg_id, listener, frame)
        if self._link is not None:
            self._link.send_binary(frame)

    def send(self, channel: str, parts: Sequence[bytes]) -> None:
        """Send any other message. It is lost when the link breaks just now."""
        if self._link is not None:
            self._link.send_binary(protocol.encode_message(channel, parts))

    def interrupt_whatever_runs(self) -> None:
        """SIGINT to the kernel's process group. Code that ignores it goes on."""
        self._send_later(protocol.INTERRUPT, msg_id=None, grace_s=0)

    def handle_binary(self, data: bytes) -> None:
        """Pass a Jupyter message on. Raises FrameError, ProtocolViolation."""
        if self.state is KernelState.GONE:
            return
        seq, frame = protocol.split_number(data)
        if seq and self._frame_numbers.is_new(seq, len(data)):
            channel, parts = protocol.decode_message(frame)
            if channel in protocol.MESSAGE_CHANNELS:
                self._listener.on_message(channel, parts)
        self._acknowledge_if_due()

    def metered(self, take: Callable[..., None], *args: Any) -> float:
        """Take one frame at full speed: this process has no other kernel to be fair to."""
        take(*args)
        return 0.0

    def _handle_numbered(self, seq: int, op: Any, fields: Mapping[str, Any]) -> None:
        super()._handle_numbered(seq, op, fields)
        if op == protocol.DIED:
            self._listener.on_kernel_died(died_of(fields))


class RelayHandshake(Handshake):
    """A connection whose next message also waits until there is room for it at the other end."""

    def __init__(self, kernel: Kernel, link: Link, room: Callable[[], asyncio.Task[None] | None]) -> None:
        super().__init__(kernel, link, Timeouts().hello_timeout_s)
        self._room = room

    def on_binary(self, data: bytes) -> Awaitable[None] | None:  # type: ignore[override]
        """Take a Jupyter message."""
        waits = [wait for wait in (super().on_binary(data), self._room()) if wait is not None]
        return _all(waits) if waits else None


async def _all(waits: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(waits)
