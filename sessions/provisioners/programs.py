"""Programs that set something up (apt-get, mmdebstrap, venv, pip): runs one, and passes its lines on as they come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sessions.provisioners.set_up_failures import KEPT_LINES, set_up_failure

Progress = Callable[[str], None]
"""Takes one line of progress, without its newline; called in the event loop's thread."""


async def run_program(
    command: Sequence[str], progress: Progress, *, failed: str, environment: Mapping[str, str] | None = None
) -> None:
    """Run a program to its end; it is ended when this is cancelled.

    Raises SetUpFailed, which begins with `failed`, says why and ends with the program's last lines.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    last: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        assert process.stdout is not None  # noqa: S101 - PIPE was asked for
        async for raw in process.stdout:
            if line := raw.decode(errors="replace").strip():
                progress(line)
                last.append(line)
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if status != 0:
        raise set_up_failure(failed, list(last), f"{Path(command[0]).name} ended with status {status}")
