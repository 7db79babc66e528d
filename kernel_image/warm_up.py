"""The warm-up of a new kernel: wait until it answers and its output arrives, then have it run something silently.

The messages that it sends until then end here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from kernel_image.channels import KernelChannels
from kernel_image.kernel_messages import JSON_ERRORS, silent_execution

_NUDGE_S = 0.2
_WARM_UP_CODE = {"python3": "print()"}
_WARM_UPS = 3
"""How often that is run, its output dropped, before a kernel counts as ready: the first runs take longer."""


class KernelWarmUp:
    """The first requests to one kernel process. Its state: what has been received so far."""

    def __init__(self, kernel_name: str, channels: KernelChannels, set_up: str = "") -> None:
        """`set_up` is code that runs once, before the warm-up code."""
        self._set_up = set_up
        self._code = _WARM_UP_CODE.get(kernel_name, "")
        self._channels = channels
        self._received: set[str] = set()
        self._changed = asyncio.Event()

    def on_message(self, channel: str, parts: list[bytes]) -> None:
        """Note a message of the kernel."""
        with contextlib.suppress(*JSON_ERRORS):
            msg_type = json.loads(parts[0])["msg_type"]
            self._received.add("iopub" if channel == "iopub" else str(msg_type))
            if msg_type == "execute_reply":
                self._received.add(f"reply to {json.loads(parts[1])['msg_id']}")
            if msg_type == "status":
                self._received.add(f"{json.loads(parts[3])['execution_state']} after {json.loads(parts[1])['msg_id']}")
            self._changed.set()

    async def run(self) -> None:
        """Ask until both the reply and a message on iopub have come; then run the warm-up code.

        Kernels drop what they publish before the subscription has arrived, and not all of them send `iopub_welcome`.
        """
        while not {"kernel_info_reply", "iopub"} <= self._received:
            self._channels.request("shell", "kernel_info_request", {})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wait_until_received({"kernel_info_reply", "iopub"}), _NUDGE_S)
        if self._set_up:
            await self._execute(self._set_up)
        for _ in range(_WARM_UPS):
            await self._execute(self._code)

    async def _execute(self, code: str) -> None:
        msg_id = self._channels.request("shell", "execute_request", silent_execution(code))
        await self._wait_until_received({f"reply to {msg_id}", f"idle after {msg_id}"})

    async def _wait_until_received(self, wanted: set[str]) -> None:
        while not wanted <= self._received:
            self._changed.clear()
            await self._changed.wait()
