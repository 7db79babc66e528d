"""What every Store promises, over each implementation: the in-memory one and PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from run_records import NOW, new_artifact, new_run, ok, output_event
from sqlalchemy import create_engine, select

from gateway.store import tables
from gateway.store.postgres import PostgresStore
from sessions.errors import NotFound, StoreUnavailable
from sessions.memory_store import MemoryStore
from sessions.model import (
    ArtifactId,
    Batch,
    Event,
    EventType,
    ExceptionInfo,
    GatewayId,
    KernelId,
    Result,
    RunId,
    RunStatus,
    Usage,
)
from sessions.ports import Store

HERE = GatewayId("gateway-a")
ELSEWHERE = GatewayId("gateway-b")
AWKWARD = "NUL \x00, lone surrogates \ud800 \udfff, substitute \x1a0000, \U0001f600 and \u4e2d\u6587"


@dataclass(frozen=True)
class Stored:
    """What a store kept of a run, in one form for all implementations."""

    status: str
    finished_at: datetime | None
    is_expired: bool
    content: tuple[str, Mapping[str, Any]] | None
    output: str | None
    stderr: str | None
    events: list[tuple[int, str, Mapping[str, Any]]]


class Memory:
    def __init__(self) -> None:
        self.store = MemoryStore()

    def look(self, run_id: RunId) -> Stored | None:
        found = self.store.runs.get(run_id)
        if found is None:
            return None
        return Stored(
            found.status,
            found.finished_at,
            found.expired_at is not None,
            None if found.expired_at else (found.run.code, found.run.variables),
            found.result and found.result.output,
            found.result and found.result.stderr,
            [(event.seq, event.type.value, event.fields) for _, event in sorted(found.events.items())],
        )

    def close(self) -> None:
        pass


class Postgres:
    def __init__(self, url: str) -> None:
        self.store = PostgresStore(url)
        self._engine = create_engine(url)

    def look(self, run_id: RunId) -> Stored | None:
        runs, events = tables.runs, tables.events
        with self._engine.connect() as connection:
            row = connection.execute(select(runs).where(runs.c.run_id == run_id)).one_or_none()
            rows = connection.execute(select(events).where(events.c.run_id == run_id).order_by(events.c.seq)).all()
        if row is None:
            return None
        return Stored(
            row.status,
            row.finished_at,
            row.expired_at is not None,
            None if row.code is None else (row.code, row.variables),
            row.output,
            row.stderr,
            [(event.seq, event.type, event.fields) for event in rows],
        )

    def close(self) -> None:
        self._engine.dispose()


@pytest.fixture(params=["memory", "postgres"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Memory | Postgres]:
    made = Memory() if request.param == "memory" else Postgres(request.getfixturevalue("database_url"))
    try:
        yield made
    finally:
        await made.store.close()
        made.close()


@pytest.fixture
def store(backend: Memory | Postgres) -> Store:
    return backend.store


async def test_a_new_run_is_queued_and_one_with_a_kernel_is_running(backend: Memory | Postgres) -> None:
    queued, running = new_run(), new_run(kernel_id=KernelId(str(uuid.uuid4())))
    await backend.store.add_run(queued)
    await backend.store.add_run(running)
    assert backend.look(queued.run_id) == Stored(
        "queued",
        None,
        is_expired=False,
        content=("print(1)", {"x": [1, None, "y"]}),
        output=None,
        stderr=None,
        events=[],
    )
    seen = backend.look(running.run_id)
    assert seen is not None
    assert seen.status == "running"


async def test_adding_a_run_again_changes_nothing(backend: Memory | Postgres) -> None:
    run = new_run()
    await backend.store.add_run(run)
    await backend.store.finish_run(ok(run), Batch(), NOW)
    before = backend.look(run.run_id)
    await backend.store.add_run(run)
    assert backend.look(run.run_id) == before


async def test_a_finished_run_has_its_answer_and_all_events_in_order(backend: Memory | Postgres) -> None:
    run = new_run()
    await backend.store.add_run(run)
    await backend.store.append(run.run_id, Batch((output_event(1, "a"), output_event(2, "b"))))
    end = Event(3, EventType.END, {"status": "ok", "usage": {"wall_ms": 1.5}})
    result = ok(
        run,
        output="ab",
        stderr="careful",
        exception=ExceptionInfo("E", "v", ("line",), 1),
        results=({"text/plain": "1"},),
        usage=Usage(1.5, 0.5, 1 << 40),
    )
    await backend.store.finish_run(result, Batch((end,)), NOW)
    assert backend.look(run.run_id) == Stored(
        "ok",
        NOW,
        is_expired=False,
        content=("print(1)", {"x": [1, None, "y"]}),
        output="ab",
        stderr="careful",
        events=[
            (1, "stdout", {"text": "a"}),
            (2, "stdout", {"text": "b"}),
            (3, "end", {"status": "ok", "usage": {"wall_ms": 1.5}}),
        ],
    )


async def test_repeating_a_batch_or_an_end_changes_nothing(backend: Memory | Postgres) -> None:
    run, artifact = new_run(), new_artifact()
    await backend.store.add_run(run)
    first = Batch((output_event(1),), (artifact,))
    await backend.store.append(run.run_id, first)
    await backend.store.append(run.run_id, first)
    last = Batch((output_event(2),), (artifact,))
    await backend.store.finish_run(ok(run), last, NOW)
    before = backend.look(run.run_id)
    await backend.store.finish_run(ok(run), last, NOW)
    await backend.store.append(run.run_id, first)
    assert backend.look(run.run_id) == before
    assert before is not None
    assert [seq for seq, _, _ in before.events] == [1, 2]


async def test_an_ended_run_takes_no_other_end_and_no_more_events(backend: Memory | Postgres) -> None:
    run, late = new_run(), new_artifact()
    await backend.store.add_run(run)
    await backend.store.finish_run(ok(run), Batch((output_event(1),)), NOW)
    before = backend.look(run.run_id)
    other = Result(run.run_id, RunStatus.TIMEOUT, "other")
    await backend.store.finish_run(other, Batch((output_event(2),), (late,)), NOW + timedelta(seconds=1))
    await backend.store.append(run.run_id, Batch((output_event(3),), (late,)))
    assert backend.look(run.run_id) == before
    assert await backend.store.get_artifact(late.ref.id) is None


@pytest.mark.parametrize("finishes", [True, False])
async def test_a_run_that_was_never_added_is_not_found(store: Store, finishes: bool) -> None:  # noqa: FBT001
    run = new_run()
    writing = store.finish_run(ok(run), Batch(), NOW) if finishes else store.append(run.run_id, Batch())
    with pytest.raises(NotFound):
        await writing


@pytest.mark.parametrize("data", [b"", bytes(range(256)) * 1000])
async def test_an_artifact_comes_back_byte_for_byte(store: Store, data: bytes) -> None:
    run, artifact = new_run(), new_artifact(data, name=f"dir/{AWKWARD}.png")
    await store.add_run(run)
    await store.append(run.run_id, Batch(artifacts=(artifact,)))
    assert await store.get_artifact(artifact.ref.id) == artifact


async def test_artifacts_together_larger_than_one_statement_arrive_whole(store: Store) -> None:
    run = new_run()
    artifacts = tuple(new_artifact(bytes([number]) * 3_000_000, name=f"{number}.png") for number in range(4))
    await store.add_run(run)
    await store.finish_run(ok(run), Batch((output_event(1),), artifacts), NOW)
    for artifact in artifacts:
        assert await store.get_artifact(artifact.ref.id) == artifact


@pytest.mark.parametrize(
    "name", ["0b9a4c1e-0000-4000-8000-000000000000", "", "x", "\x00", "\ud800", "'; DROP TABLE runs"]
)
async def test_an_unknown_artifact_is_none(store: Store, name: str) -> None:
    assert await store.get_artifact(ArtifactId(name)) is None


async def test_characters_that_databases_refuse_survive(backend: Memory | Postgres) -> None:
    run = new_run(code=AWKWARD, variables={"x": AWKWARD, AWKWARD: 1})
    await backend.store.add_run(run)
    await backend.store.finish_run(
        ok(run, output=AWKWARD, stderr=AWKWARD, error=AWKWARD), Batch((output_event(1, AWKWARD),)), NOW
    )
    seen = backend.look(run.run_id)
    assert seen is not None
    assert seen.content == (AWKWARD, {"x": AWKWARD, AWKWARD: 1})
    assert (seen.output, seen.stderr) == (AWKWARD, AWKWARD)
    assert seen.events == [(1, "stdout", {"text": AWKWARD})]


async def test_lost_are_the_unfinished_runs_of_that_gateway_alone(backend: Memory | Postgres) -> None:
    unfinished, finished, foreign = new_run(), new_run(), new_run(gateway_id=ELSEWHERE)
    for run in (unfinished, finished, foreign):
        await backend.store.add_run(run)
        await backend.store.append(run.run_id, Batch((output_event(1),)))
    await backend.store.finish_run(ok(finished), Batch(), NOW)
    assert await backend.store.mark_lost(HERE, NOW) == 1
    assert await backend.store.mark_lost(HERE, NOW) == 0
    seen = [backend.look(run.run_id) for run in (unfinished, finished, foreign)]
    assert [stored and stored.status for stored in seen] == ["lost", "ok", "queued"]
    assert seen[0] is not None
    assert seen[0].finished_at == NOW
    assert [(seq, kind) for seq, kind, _ in seen[0].events] == [(1, "stdout"), (2, "end")]
    assert seen[0].events[1][2]["status"] == "lost"


async def test_retention_takes_the_content_of_old_runs_and_leaves_young_ones_alone(backend: Memory | Postgres) -> None:
    old, young = new_run(), new_run(created_at=NOW + timedelta(days=1))
    artifacts = {run.run_id: new_artifact() for run in (old, young)}
    for run in (old, young):
        await backend.store.add_run(run)
        await backend.store.finish_run(ok(run), Batch((output_event(1),), (artifacts[run.run_id],)), NOW)
    untouched = backend.look(young.run_id)
    assert await backend.store.remove_expired(NOW + timedelta(hours=1)) == 1
    assert await backend.store.remove_expired(NOW + timedelta(hours=1)) == 0
    assert backend.look(old.run_id) == Stored(
        "ok", NOW, is_expired=True, content=None, output=None, stderr=None, events=[]
    )
    assert await backend.store.get_artifact(artifacts[old.run_id].ref.id) is None
    assert backend.look(young.run_id) == untouched
    assert await backend.store.get_artifact(artifacts[young.run_id].ref.id) == artifacts[young.run_id]


async def test_a_tombstone_goes_after_as_long_again(backend: Memory | Postgres) -> None:
    run = new_run()
    await backend.store.add_run(run)
    await backend.store.finish_run(ok(run), Batch(), NOW)
    await backend.store.remove_expired(NOW + timedelta(hours=1))
    assert backend.look(run.run_id) is not None
    long_after = datetime.now(UTC) + timedelta(days=1)
    assert await backend.store.remove_expired(long_after) == 0
    assert backend.look(run.run_id) is None


async def test_retention_spares_a_run_that_may_still_be_going_on(backend: Memory | Postgres) -> None:
    living, forgotten = new_run(timeout_s=7200.0), new_run(timeout_s=60.0)
    for run in (living, forgotten):
        await backend.store.add_run(run)
    assert await backend.store.remove_expired(NOW + timedelta(hours=1)) == 1
    seen = [backend.look(run.run_id) for run in (living, forgotten)]
    assert [stored and (stored.status, stored.is_expired) for stored in seen] == [("queued", False), ("lost", True)]


async def test_more_expired_runs_than_one_batch_all_go(store: Store) -> None:
    for _ in range(230):
        run = new_run()
        await store.add_run(run)
        await store.finish_run(ok(run), Batch(), NOW)
    assert await store.remove_expired(NOW + timedelta(hours=1)) == 230


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    await store.ping()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.ping()
