"""Whether a new kernel is ready: it answers, its output arrives, and it has done once what it will do all the time.

What it says until then is heard here and goes no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from kernel_image import kernel_process
from kernel_image.channels import KernelChannels
from kernel_image.kernel_messages import JSON_ERRORS

_NUDGE_S = 0.2
_WARM_UP_CODE = {kernel_process.FORKED_KERNEL: "print()"}
_WARM_UPS = 3
"""Run silently, its output dropped, before a kernel counts as ready: what is done the first times takes longer."""


class Readiness:
    """The first conversation with one kernel process. Its state: what has been heard."""

    def __init__(self, kernel_name: str, channels: KernelChannels) -> None:
        self._kernel_name = kernel_name
        self._channels = channels
        self._heard: set[str] = set()
        self._news = asyncio.Event()

    def hear(self, channel: str, parts: list[bytes]) -> None:
        """Take a message of the kernel."""
        with contextlib.suppress(*JSON_ERRORS):
            msg_type = json.loads(parts[0])["msg_type"]
            self._heard.add("iopub" if channel == "iopub" else str(msg_type))
            if msg_type == "execute_reply":
                self._heard.add(f"reply to {json.loads(parts[1])['msg_id']}")
            if msg_type == "status":
                self._heard.add(f"{json.loads(parts[3])['execution_state']} after {json.loads(parts[1])['msg_id']}")
            self._news.set()

    async def wait(self) -> None:
        """Ask until both the answer and a message on iopub have come; then have the kernel do everything once.

        iopub drops what is published before a subscription has arrived, and not every kernel sends `iopub_welcome`.
        """
        while not {"kernel_info_reply", "iopub"} <= self._heard:
            self._channels.request("shell", "kernel_info_request", {})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wait_until_heard({"kernel_info_reply", "iopub"}), _NUDGE_S)
        code = _WARM_UP_CODE.get(self._kernel_name, "")
        content = {"code": code, "silent": True, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        for _ in range(_WARM_UPS):
            warm_up = self._channels.request("shell", "execute_request", content)
            await self._wait_until_heard({f"reply to {warm_up}", f"idle after {warm_up}"})

    async def _wait_until_heard(self, wanted: set[str]) -> None:
        while not wanted <= self._heard:
            self._news.clear()
            await self._news.wait()
