"""Follow one of Docker's long answers (a pull, a build) line by line while it is produced.

Only reading and reporting; what is pulled or built is base.py's and build.py's.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import docker.errors
from docker.api.client import APIClient

from sessions.errors import EngineUnavailable, SetUpFailed
from sessions.provisioners.docker.engine import SILENCE, DockerEngine
from sessions.provisioners.programs import Progress
from sessions.provisioners.set_up_failures import KEPT_LINES, set_up_failure

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_QUIET_STATUSES = ("Downloading", "Extracting", "Waiting", "Verifying Checksum")


async def follow(
    engine: DockerEngine,
    start: Callable[[APIClient], Iterable[Mapping[str, Any]]],
    progress: Progress,
    *,
    failed: str = "",
) -> None:
    """Report each line of the answer to `progress` until it ends.

    The reading thread is a daemon, for such an answer may be silent for minutes: cancelling returns at once, and the
    engine gives up when the connection closes with the next line or with this process.

    Raises EngineUnavailable, and SetUpFailed with Docker's own words. It begins with `failed` where that is given, says
    why, and ends with the last lines.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    given_up = threading.Event()
    last: deque[str] = deque(maxlen=KEPT_LINES)

    def say(line: str) -> None:
        last.append(line)
        loop.call_soon_threadsafe(progress, line)

    def settle(error: Exception | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    def read() -> None:
        error: Exception | None = None
        try:
            for part in start(engine.client()):
                if given_up.is_set():
                    return
                _report(part, say)
        except SetUpFailed as failure:
            error = set_up_failure(failed, list(last), str(failure)) if failed else failure
        except SILENCE as silence:
            error = _unanswered(silence)
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=read, name="docker-build", daemon=True).start()
    try:
        await ended
    finally:
        given_up.set()


def _unanswered(error: Exception) -> Exception:
    if isinstance(error, docker.errors.APIError):
        return SetUpFailed(f"The Docker engine refused: {error.explanation or error}")
    return EngineUnavailable("The Docker engine stopped answering in the middle of a build: start it again.")


def _report(part: Mapping[str, Any], say: Callable[[str], object]) -> None:
    """Turn one JSON part of the answer into lines. Raises SetUpFailed for the part that reports an error."""
    if "error" in part:
        raise SetUpFailed(str(part["error"]).strip())
    if "stream" in part:
        for line in _COLOURS.sub("", str(part["stream"])).replace("\r", "\n").splitlines():
            if line.strip():
                say(line.rstrip())
    elif "status" in part and part["status"] not in _QUIET_STATUSES:
        say(f"{part['id']}: {part['status']}" if part.get("id") else str(part["status"]))
