"""Runs, events, artifacts and sessions for tests that store them: plain ones, to be varied by keyword."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sessions.model import (
    ANONYMOUS,
    Artifact,
    ArtifactId,
    ArtifactKind,
    ArtifactRef,
    Event,
    EventType,
    GatewayId,
    KernelId,
    Progress,
    Result,
    Run,
    RunId,
    RunStatus,
    Session,
    SessionId,
)

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)


def new_run(**changes: Any) -> Run:
    run = Run(
        run_id=RunId(str(uuid.uuid4())),
        tenant=ANONYMOUS,
        gateway_id=GatewayId("gateway-a"),
        language="python",
        code="print(1)",
        variables={"x": [1, None, "y"]},
        timeout_s=30.0,
        created_at=NOW,
    )
    return replace(run, **changes)


def new_kernel_id() -> KernelId:
    return KernelId(str(uuid.uuid4()))


def new_session(**changes: Any) -> Session:
    session = Session(
        tenant=ANONYMOUS,
        session_id=SessionId("notebook"),
        gateway_id=GatewayId("gateway-a"),
        language="python",
        idle_timeout_s=1800.0,
        max_lifetime_s=86_400.0,
        created_at=NOW,
        last_used_at=NOW,
    )
    return replace(session, **changes)


def progress(taken_seq: int, **changes: Any) -> Progress:
    return replace(Progress(taken_seq, None, {"execution_count": taken_seq}), **changes)


def output_event(seq: int, text: str = "1\n") -> Event:
    return Event(seq, EventType.STDOUT, {"text": text})


def new_artifact(data: bytes = b"\x89PNG\x00\xff", **changes: Any) -> Artifact:
    ref = ArtifactRef(ArtifactId(str(uuid.uuid4())), ArtifactKind.IMAGE, "figures/a.png", "image/png", len(data))
    return Artifact(replace(ref, **changes), data)


def ok(run: Run, **fields: Any) -> Result:
    return Result(**{"run_id": run.run_id, "status": RunStatus.OK, "output": "1\n", **fields})
