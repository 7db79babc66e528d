"""What tests of event streams share: a run to ask for, server-sent events read back, and waiting for both ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from http_face import Face
from memory_service import MemoryRun

from sessions.model import ANONYMOUS, RunRequest, SessionId, TenantId


def asked(code: str = "1", tenant: TenantId = ANONYMOUS, session_id: str | None = None) -> RunRequest:
    return RunRequest(tenant, code, "python", {}, 30.0, None if session_id is None else SessionId(session_id))


def frames(text: str) -> list[dict[str, Any]]:
    """The events of an SSE text; each frame's own `id` and `event` must say what its data says."""
    events = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if lines:
            event = json.loads(lines["data"])
            assert (lines["id"], lines["event"]) == (str(event["seq"]), event["type"])
            events.append(event)
    return events


async def run_of(face: Face) -> MemoryRun:
    async with asyncio.timeout(10):
        while not face.service.runs:
            await asyncio.sleep(0.005)
    return face.service.runs[0]


async def until_left(run: MemoryRun) -> None:
    async with asyncio.timeout(10):
        while run.followers:
            await asyncio.sleep(0.005)
