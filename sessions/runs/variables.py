"""Sets variables in a kernel, by a silent request that its language knows: sessions/languages.py."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from sessions.errors import KernelLost, Unavailable
from sessions.kernels.kernel import Kernel
from sessions.kernels.outcomes import Died, Done
from sessions.languages import traits_of

_NOT_SET = "The variables could not be set: the kernel ended, or did not answer."


def send_variables(kernel: Kernel, variables: Mapping[str, Any]) -> tuple[str, asyncio.Future[Done | Died]]:
    """Ask for them to be set; returns the request's msg_id, and what is done once it has ended.

    Raises KernelLost when no kernel would take it. The kernelspec must be one in which they can be set.
    """
    setting = traits_of(kernel.kernel_name).variables
    assert setting is not None  # noqa: S101 - admission.py has refused them
    code, values = setting.request(variables)
    ended = _Ended()
    msg_id = uuid4().hex
    metadata = {"cellblock": {"variables": values, "artifacts": False, "generation": kernel.generation}}
    kernel.execute(msg_id, code, ended, silent=True, metadata=metadata)
    return msg_id, ended.end


async def set_variables(kernel: Kernel, variables: Mapping[str, Any], timeout_s: float) -> None:
    """Set them, and return once that is done. Raises Unavailable when the kernel has not done so in time, or ended."""
    try:
        _, ended = send_variables(kernel, variables)
    except KernelLost as error:
        raise Unavailable(_NOT_SET) from error
    done, _ = await asyncio.wait([ended], timeout=timeout_s)
    if not done or isinstance(ended.result(), Died):
        raise Unavailable(_NOT_SET)


class _Ended:
    """A listener that waits for the end and for nothing else."""

    uncommitted_seq = None

    def __init__(self) -> None:
        self.end: asyncio.Future[Done | Died] = asyncio.get_running_loop().create_future()

    def on_message(self, seq: int, message: object) -> None:
        """Nothing."""

    def on_gap(self, seq: int, dropped_bytes: int) -> None:
        """Nothing."""

    def on_end(self, end: Done | Died) -> None:
        """The variables are set, or the kernel has died."""
        if not self.end.done():
            self.end.set_result(end)
