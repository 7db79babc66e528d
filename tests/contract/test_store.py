"""What every Store promises of runs, over each implementation: the in-memory one and PostgreSQL."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from run_records import NOW, new_artifact, new_kernel_id, new_run, ok, output_event, progress

from sessions.errors import NotFound, StoreUnavailable
from sessions.measures.written import WrittenBytes
from sessions.model import (
    Artifact,
    ArtifactId,
    ArtifactKind,
    Batch,
    Event,
    EventType,
    ExceptionInfo,
    GatewayId,
    JupyterRequest,
    Progress,
    Result,
    Run,
    RunId,
    RunQuery,
    RunRecord,
    RunStatus,
    RunSummary,
    SessionId,
    TenantId,
    Usage,
)
from sessions.ports import Store

HERE = GatewayId("gateway-a")
ELSEWHERE = GatewayId("gateway-b")
SOMEBODY = TenantId("somebody")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
AWKWARD = "NUL \x00, lone surrogates \ud800 \udfff, substitute \x1a0000, \U0001f600 and \u4e2d\u6587"
NO_IDS = ["0b9a4c1e-0000-4000-8000-000000000000", "", "x", "\x00", "\ud800", "'; DROP TABLE runs"]


async def find(store: Store, run: Run) -> RunRecord:
    record = await store.get_run(run.run_id)
    assert record is not None
    return record


async def all_events(store: Store, run: Run) -> list[Event]:
    return await store.get_events(run.run_id, 0, 1000)


async def everything(store: Store, run: Run) -> tuple[RunRecord | None, list[Event]]:
    return await store.get_run(run.run_id), await all_events(store, run)


async def add_ended(store: Store, **changes: Any) -> Run:
    run = new_run(**changes)
    await store.add_run(run)
    await store.finish_run(ok(run), Batch((output_event(1),)), NOW)
    return run


async def test_a_new_run_is_queued_and_one_with_a_kernel_is_running(store: Store) -> None:
    queued = new_run(
        session_id=SessionId("s"),
        allow_stdin=True,
        idempotency_key="key",
        request_sha256=bytes(range(32)),
        jupyter=JupyterRequest({"msg_id": AWKWARD, "odd": [None, 1]}, {"cellId": "1"}, {"silent": False}, AWKWARD),
        traceparent=TRACEPARENT,
    )
    running = new_run(kernel_id=new_kernel_id(), started_at=NOW)
    assert await store.add_run(queued) is None
    assert await store.add_run(running) is None
    first, second = await find(store, queued), await find(store, running)
    assert first == RunRecord(queued, first.number, RunStatus.QUEUED)
    assert second == RunRecord(running, second.number, RunStatus.RUNNING)
    assert first.number < second.number
    assert await all_events(store, queued) == []


async def test_adding_a_run_again_changes_nothing(store: Store) -> None:
    run = await add_ended(store, idempotency_key="key", request_sha256=b"1")
    before = await everything(store, run)
    assert await store.add_run(run) is None
    assert await everything(store, run) == before


async def test_of_runs_with_the_same_key_the_first_is_kept_and_told(store: Store) -> None:
    first = new_run(idempotency_key=AWKWARD, request_sha256=b"1")
    second = replace(new_run(), idempotency_key=AWKWARD, request_sha256=b"2")
    await store.add_run(first)
    assert await store.add_run(second) == await find(store, first)
    assert await store.get_run(second.run_id) is None
    assert await store.find_run(first.tenant, AWKWARD) == await find(store, first)


async def test_of_runs_with_the_same_key_that_come_together_one_is_added(store: Store) -> None:
    runs = [new_run(idempotency_key="key") for _ in range(4)]
    answers = await asyncio.gather(*(store.add_run(run) for run in runs))
    (added,) = [run for run, answer in zip(runs, answers, strict=True) if answer is None]
    assert [answer.run for answer in answers if answer] == [added] * 3


async def test_a_key_is_its_tenants_own(store: Store) -> None:
    ours, theirs = new_run(idempotency_key="key"), new_run(idempotency_key="key", tenant=SOMEBODY)
    assert [await store.add_run(run) for run in (ours, theirs)] == [None, None]
    assert await store.find_run(SOMEBODY, "key") == await find(store, theirs)
    assert await store.find_run(SOMEBODY, "other") is None


async def test_a_started_run_is_running_and_may_be_started_elsewhere(store: Store) -> None:
    run = new_run(idempotency_key="key")
    await store.add_run(run)
    for kernel_id, started_at in ((new_kernel_id(), NOW), (new_kernel_id(), NOW + timedelta(seconds=1))):
        await store.start_run(run.run_id, kernel_id, started_at)
        started = replace(run, kernel_id=kernel_id, started_at=started_at)
        record = await find(store, run)
        assert record == RunRecord(started, record.number, RunStatus.RUNNING)


async def test_an_ended_or_unknown_run_cannot_be_started(store: Store) -> None:
    ended = await add_ended(store)
    before = await everything(store, ended)
    for run in (ended, new_run()):
        with pytest.raises(NotFound):
            await store.start_run(run.run_id, new_kernel_id(), NOW)
    assert await everything(store, ended) == before


async def test_a_withdrawn_run_was_never_there(store: Store) -> None:
    run, artifact = new_run(idempotency_key="key"), new_artifact()
    await store.add_run(run)
    await store.append(run.run_id, Batch((output_event(1),), (artifact,)))
    await store.withdraw_run(run.run_id)
    await store.withdraw_run(run.run_id)
    assert await everything(store, run) == (None, [])
    assert await store.get_artifact(artifact.ref.id) is None
    for late in (store.append(run.run_id, Batch()), store.start_run(run.run_id, new_kernel_id(), NOW)):
        with pytest.raises(NotFound):
            await late
    assert await store.add_run(new_run(idempotency_key="key")) is None


async def test_an_ended_run_cannot_be_withdrawn(store: Store) -> None:
    run = await add_ended(store)
    before = await everything(store, run)
    await store.withdraw_run(run.run_id)
    assert await everything(store, run) == before


async def test_a_finished_run_has_its_whole_answer_and_all_events_in_order(store: Store) -> None:
    run = new_run(session_id=SessionId("s"))
    image, file = new_artifact(), new_artifact(kind=ArtifactKind.FILE, name="t.csv", content_type="text/csv")
    await store.add_run(run)
    await store.append(run.run_id, Batch((output_event(2, "b"), output_event(1, "a"))))
    end = Event(3, EventType.END, {"status": "error", "usage": {"wall_ms": 1.5}})
    result = Result(
        run.run_id,
        RunStatus.ERROR,
        "ab",
        stderr="careful",
        error="Traceback …",
        exception=ExceptionInfo("E", "v", ("one", "two"), 1),
        results=({"text/plain": "1"}, {"image": "figure-1.png"}),
        images={"figure-1.png": image.ref},
        files={"t.csv": file.ref},
        execution_count=1,
        truncated=True,
        usage=Usage(1.5, 0.5, 1 << 40),
        session_id=SessionId("s"),
        session_created=True,
        session_lost=True,
    )
    await store.finish_run(result, Batch((end,), (image, file)), NOW)
    record = await find(store, run)
    assert record == RunRecord(run, record.number, RunStatus.ERROR, finished_at=NOW, result=result)
    assert await all_events(store, run) == [output_event(1, "a"), output_event(2, "b"), end]


async def test_an_answer_with_nothing_to_say_comes_back_as_it_was(store: Store) -> None:
    run = new_run()
    result = Result(run.run_id, RunStatus.CANCELLED, "")
    await store.add_run(run)
    await store.finish_run(result, Batch(), NOW)
    assert (await find(store, run)).result == result


async def test_repeating_a_batch_or_an_end_changes_nothing(store: Store) -> None:
    run, artifact = new_run(), new_artifact()
    await store.add_run(run)
    first = Batch((output_event(1),), (artifact,), progress(1))
    await store.append(run.run_id, first)
    await store.append(run.run_id, first)
    last = Batch((output_event(2),), (artifact,))
    await store.finish_run(ok(run), last, NOW)
    before = await everything(store, run)
    await store.finish_run(ok(run), last, NOW)
    await store.append(run.run_id, first)
    assert await everything(store, run) == before
    assert [event.seq for event in before[1]] == [1, 2]


async def test_an_ended_run_takes_no_other_end_and_no_more_events(store: Store) -> None:
    run, late = await add_ended(store), new_artifact()
    before = await everything(store, run)
    other = Result(run.run_id, RunStatus.TIMEOUT, "other")
    await store.finish_run(other, Batch((output_event(2),), (late,)), NOW + timedelta(seconds=1))
    await store.append(run.run_id, Batch((output_event(3),), (late,), progress(1)))
    assert await everything(store, run) == before
    assert await store.get_artifact(late.ref.id) is None


@pytest.mark.parametrize("finishes", [True, False])
async def test_a_run_that_was_never_added_is_not_found(store: Store, finishes: bool) -> None:  # noqa: FBT001
    run = new_run()
    writing = store.finish_run(ok(run), Batch(), NOW) if finishes else store.append(run.run_id, Batch())
    with pytest.raises(NotFound):
        await writing


async def test_progress_is_what_was_last_told_until_the_run_ends(store: Store) -> None:
    run = new_run()
    await store.add_run(run)
    half_a_file = progress(7, file_seq=5, state={"text": AWKWARD})
    told: list[tuple[Batch, Progress | None]] = [
        (Batch((output_event(1),)), None),
        (Batch(progress=half_a_file), half_a_file),
        (Batch((output_event(2),)), half_a_file),
        (Batch((output_event(3),), (new_artifact(),), progress(9)), progress(9)),
    ]
    for batch, expected in told:
        await store.append(run.run_id, batch)
        assert (await find(store, run)).progress == expected
    await store.finish_run(ok(run), Batch(progress=progress(10)), NOW)
    assert (await find(store, run)).progress is None


async def test_an_older_batch_that_comes_late_takes_no_progress_back(store: Store) -> None:
    run = new_run()
    await store.add_run(run)
    await store.append(run.run_id, Batch((output_event(1), output_event(2)), progress=progress(2)))
    await store.append(run.run_id, Batch((output_event(1),), progress=progress(1)))
    assert (await find(store, run)).progress == progress(2)


async def test_progress_on_one_kernel_is_none_on_another(store: Store) -> None:
    run, kernel_id = new_run(), new_kernel_id()
    await store.add_run(run)
    await store.start_run(run.run_id, kernel_id, NOW)
    await store.append(run.run_id, Batch(progress=progress(9)))
    await store.start_run(run.run_id, kernel_id, NOW)
    assert (await find(store, run)).progress == progress(9)
    await store.start_run(run.run_id, new_kernel_id(), NOW)
    assert (await find(store, run)).progress is None


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
    await store.append(run.run_id, Batch((output_event(1),), artifacts[:2], progress(3)))
    await store.finish_run(ok(run), Batch((output_event(2),), artifacts[2:]), NOW)
    for artifact in artifacts:
        assert await store.get_artifact(artifact.ref.id) == artifact
    assert [event.seq for event in await all_events(store, run)] == [1, 2]


@pytest.mark.parametrize("name", NO_IDS)
async def test_what_is_unknown_is_none(store: Store, name: str) -> None:
    assert await store.get_artifact(ArtifactId(name)) is None
    assert await store.get_run(RunId(name)) is None
    assert await store.get_events(RunId(name), 0, 10) == []


async def test_characters_that_databases_refuse_survive(store: Store) -> None:
    run = new_run(
        code=AWKWARD,
        variables={"x": AWKWARD, AWKWARD: 1},
        tenant=TenantId(AWKWARD),
        session_id=SessionId(AWKWARD),
        gateway_id=GatewayId(AWKWARD),
        language=AWKWARD,
    )
    result = ok(
        run,
        output=AWKWARD,
        stderr=AWKWARD,
        error=AWKWARD,
        exception=ExceptionInfo(AWKWARD, AWKWARD, (AWKWARD,), None),
        results=({"text/plain": AWKWARD},),
        files={AWKWARD: new_artifact(kind=ArtifactKind.FILE, name=AWKWARD, content_type=AWKWARD).ref},
        session_id=SessionId(AWKWARD),
    )
    await store.add_run(run)
    assert [record.run for record in await store.unfinished_runs(GatewayId(AWKWARD))] == [run]
    await store.finish_run(result, Batch((output_event(1, AWKWARD),)), NOW)
    record = await find(store, run)
    assert (record.run, record.result) == (run, result)
    assert await all_events(store, run) == [output_event(1, AWKWARD)]
    listed = await store.list_runs(RunQuery(TenantId(AWKWARD), 10, session_id=SessionId(AWKWARD)))
    assert [(summary.language, summary.session_id) for summary in listed] == [(AWKWARD, AWKWARD)]


@pytest.mark.parametrize(
    ("after", "limit", "expected"), [(0, 9, [1, 2, 3]), (1, 9, [2, 3]), (0, 2, [1, 2]), (1, 1, [2]), (3, 9, [])]
)
async def test_events_come_in_order_from_where_the_reader_is(
    store: Store, after: int, limit: int, expected: list[int]
) -> None:
    run, other = new_run(), new_run()
    for added in (run, other):
        await store.add_run(added)
        await store.append(added.run_id, Batch((output_event(3), output_event(1))))
        await store.append(added.run_id, Batch((output_event(2),)))
    assert [event.seq for event in await store.get_events(run.run_id, after, limit)] == expected


async def test_a_list_shows_what_runs_were_and_cost(store: Store) -> None:
    ended, living = new_run(), new_run(session_id=SessionId("s"), created_at=NOW + timedelta(hours=1))
    await store.add_run(ended)
    await store.add_run(living)
    await store.finish_run(ok(ended, usage=Usage(1.5, 0.5, 3)), Batch(), NOW)
    numbers = [(await find(store, run)).number for run in (ended, living)]
    at = living.created_at
    assert await store.list_runs(RunQuery(ended.tenant, 10)) == [
        RunSummary(living.run_id, numbers[1], RunStatus.QUEUED, "python", at, None, SessionId("s"), None),
        RunSummary(ended.run_id, numbers[0], RunStatus.OK, "python", NOW, NOW, None, Usage(1.5, 0.5, 3)),
    ]


HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, [4, 3, 2, 1, 0]),
        ({"limit": 2}, [4, 3]),
        ({"session_id": "s"}, [3, 1]),
        ({"session_id": "unknown"}, []),
        ({"status": RunStatus.OK}, [2, 1, 0]),
        ({"status": RunStatus.QUEUED}, [4, 3]),
        ({"status": RunStatus.RUNNING}, []),
        ({"created_before": NOW + 2 * HOUR}, [1, 0]),
        ({"created_from": NOW + 3 * HOUR}, [4, 3]),
        ({"created_from": NOW + HOUR, "created_before": NOW + 3 * HOUR, "session_id": "s"}, [1]),
        ({"before_number": 3}, [2, 1, 0]),
        ({"before_number": 3, "limit": 1, "status": RunStatus.OK, "session_id": "s"}, [1]),
        ({"tenant": SOMEBODY}, [5]),
    ],
)
async def test_a_list_has_the_newest_of_the_runs_that_match(
    store: Store, conditions: dict[str, Any], expected: list[int]
) -> None:
    runs = [new_run(created_at=NOW + number * HOUR, session_id=(None, "s")[number % 2]) for number in range(5)]
    runs.append(new_run(tenant=SOMEBODY))
    for run in runs:
        await store.add_run(run)
    for run in runs[:3]:
        await store.finish_run(ok(run), Batch(), NOW)
    if (before := conditions.get("before_number")) is not None:
        conditions = {**conditions, "before_number": (await find(store, runs[before])).number}
    listed = await store.list_runs(RunQuery(**{"tenant": runs[0].tenant, "limit": 100, **conditions}))
    assert [summary.run_id for summary in listed] == [runs[number].run_id for number in expected]


async def test_unfinished_are_the_living_runs_of_that_gateway_in_order(store: Store) -> None:
    queued, running = new_run(), new_run(kernel_id=new_kernel_id(), started_at=NOW, created_at=NOW - HOUR)
    await store.add_run(queued)
    await store.add_run(running)
    await store.append(running.run_id, Batch((output_event(1),), progress=progress(1)))
    await store.add_run(new_run(gateway_id=ELSEWHERE))
    await add_ended(store)
    assert await store.unfinished_runs(HERE) == [await find(store, queued), await find(store, running)]


async def test_retention_takes_the_content_of_old_runs_and_leaves_young_ones_alone(store: Store) -> None:
    asked = JupyterRequest({"msg_id": "secret"}, {}, {}, "client")
    old = new_run(idempotency_key="key", jupyter=asked, traceparent=TRACEPARENT)
    young = new_run(created_at=NOW + timedelta(days=1))
    artifacts = {run.run_id: new_artifact() for run in (old, young)}
    for run in (old, young):
        await store.add_run(run)
        await store.finish_run(ok(run), Batch((output_event(1),), (artifacts[run.run_id],)), NOW)
    untouched = await everything(store, young)
    assert await store.remove_expired(NOW + HOUR) == 1
    assert await store.remove_expired(NOW + HOUR) == 0
    tombstone = await find(store, old)
    bare = replace(old, code="", variables={}, jupyter=None, traceparent=None)
    assert tombstone == RunRecord(bare, tombstone.number, RunStatus.OK, NOW, expired_at=tombstone.expired_at)
    assert tombstone.expired_at is not None
    assert await store.find_run(old.tenant, "key") == tombstone
    assert await all_events(store, old) == []
    assert await store.get_artifact(artifacts[old.run_id].ref.id) is None
    assert await everything(store, young) == untouched
    assert await store.get_artifact(artifacts[young.run_id].ref.id) == artifacts[young.run_id]
    assert [summary.run_id for summary in await store.list_runs(RunQuery(old.tenant, 10))] == [young.run_id]


async def test_a_tombstone_goes_after_as_long_again(store: Store) -> None:
    run = await add_ended(store)
    await store.remove_expired(NOW + HOUR)
    assert await store.get_run(run.run_id) is not None
    long_after = datetime.now(UTC) + timedelta(days=1)
    assert await store.remove_expired(long_after) == 0
    assert await store.get_run(run.run_id) is None


async def test_retention_spares_a_run_that_may_still_be_going_on(store: Store) -> None:
    living, forgotten = new_run(timeout_s=7200.0), new_run(timeout_s=60.0)
    for run in (living, forgotten):
        await store.add_run(run)
        await store.append(run.run_id, Batch(progress=progress(1)))
    assert await store.remove_expired(NOW + HOUR) == 1
    records = [await find(store, run) for run in (living, forgotten)]
    assert [(record.status, record.expired_at is None, record.progress) for record in records] == [
        (RunStatus.QUEUED, True, progress(1)),
        (RunStatus.LOST, False, None),
    ]


async def test_more_expired_runs_than_one_batch_all_go(store: Store) -> None:
    for _ in range(230):
        await add_ended(store)
    assert await store.remove_expired(NOW + HOUR) == 230


async def test_a_closed_store_is_unavailable(store: Store) -> None:
    await store.ping()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    with pytest.raises(StoreUnavailable):
        await store.list_runs(RunQuery(SOMEBODY, 1))


async def test_a_copy_has_the_content_of_its_original_in_the_same_run_alone(store: Store) -> None:
    data = b"the same" * 1000
    original, stranger = new_artifact(data, name="a.png"), new_artifact(data, name="a.png")
    sha256 = hashlib.sha256(data).digest()
    copy, orphan = (Artifact(new_artifact(data, name="b.png").ref, b"", sha256) for _ in range(2))
    run, other, third = new_run(), new_run(), new_run()
    for one, artifacts in ((run, (original, copy)), (other, (stranger,)), (third, (orphan,))):
        await store.add_run(one)
        await store.append(one.run_id, Batch((output_event(1),), artifacts))
    assert await store.get_artifact(copy.ref.id) == replace(copy, data=data)
    assert await store.get_artifact(orphan.ref.id) is None
    assert await store.find_artifact(copy.ref.id) == copy.ref
    assert await store.read_artifact(copy.ref.id, 4, 8) == data[4:12]
    assert await store.read_artifact(original.ref.id, len(data) - 3, 8) == data[-3:]
    assert await store.read_artifact(orphan.ref.id, 0, 8) == b""


async def test_an_empty_file_is_no_copy(store: Store) -> None:
    run, empty = new_run(), new_artifact(b"", name="empty")
    await store.add_run(run)
    await store.append(run.run_id, Batch(artifacts=(empty,)))
    assert await store.get_artifact(empty.ref.id) == empty


async def test_the_size_of_a_run_is_told_without_it(store: Store) -> None:
    run = new_run(code="x" * 100_000, variables={"text": "y" * 100_000})
    assert await store.run_bytes(run.run_id) == 0
    await store.add_run(run)
    assert 200_000 <= await store.run_bytes(run.run_id) < 210_000
    await store.finish_run(ok(run, output="z" * 100_000, results=({"text/html": "z" * 100_000},)), Batch(), NOW)
    assert 400_000 <= await store.run_bytes(run.run_id) < 420_000
    assert await store.run_bytes(RunId("no uuid")) == 0


async def test_what_was_committed_is_counted_by_kind(store: Store) -> None:
    run, artifact = new_run(), new_artifact(bytes(1000))
    await store.add_run(run)
    await store.append(run.run_id, Batch((output_event(1, "12345"),), (artifact,), progress(1)))
    first = store.written
    assert (first.answers, first.artifacts) == (0, 1000)
    assert 5 <= first.events < 50
    await store.finish_run(ok(run, output="123", stderr="45", results=({"text/plain": "67"},)), Batch(), NOW)
    assert store.written == first + WrittenBytes(answers=7)
    with pytest.raises(NotFound):
        await store.append(new_run().run_id, Batch((output_event(1),)))
    assert store.written == first + WrittenBytes(answers=7)


async def test_the_size_of_the_database_grows_with_what_is_in_it(store: Store) -> None:
    before_bytes = await store.size_bytes()
    run = await add_ended(store, code="x" * 1000)
    await store.add_run(other := new_run(code=run.code))
    await store.append(other.run_id, Batch(artifacts=(new_artifact(bytes(1_000_000)),)))
    assert await store.size_bytes() > before_bytes
