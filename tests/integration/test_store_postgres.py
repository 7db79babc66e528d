"""What is particular to the Postgres adapter: what an operator sees in the database, and how it goes about it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from run_records import NOW, new_artifact, new_kernel_id, new_run, new_session, ok, output_event, progress
from sqlalchemy import Connection, event, make_url, text
from store_fixtures import execute, using_store

from gateway.store.postgres import PostgresStore
from gateway.store.statements import Prepared
from sessions.errors import StoreUnavailable
from sessions.inputs import RunInputs
from sessions.model import (
    ANONYMOUS,
    ArtifactKind,
    ArtifactRef,
    Batch,
    ExceptionInfo,
    GatewayId,
    RunId,
    RunQuery,
    RunStatus,
    SessionId,
    Usage,
)


async def test_ordinary_runs_are_readable_in_psql(postgres_store: PostgresStore, connection: Connection) -> None:
    run = new_run(code="print('中文 ✓')")
    await postgres_store.add_run(run)
    await postgres_store.finish_run(ok(run, output="中文 ✓\n"), Batch((output_event(1, "中文 ✓\n"),)), NOW)
    row = connection.execute(text("SELECT code, output, variables->>'x', status FROM runs")).one()
    assert tuple(row) == ("print('中文 ✓')", "中文 ✓\n", '[1,null,"y"]', "ok")
    assert connection.execute(text("SELECT fields->>'text' FROM events")).scalar_one() == "中文 ✓\n"


async def test_one_row_has_the_whole_answer(postgres_store: PostgresStore, connection: Connection) -> None:
    run, image, file = new_run(), new_artifact(), new_artifact(kind=ArtifactKind.FILE, name="t.csv")
    await postgres_store.add_run(run)
    result = ok(
        run,
        status=RunStatus.ERROR,
        stderr="careful",
        error="Traceback …",
        exception=ExceptionInfo("E", "v", ("one", "two"), None),
        results=({"text/plain": "1"}, {"image": "figure-1.png"}),
        images={"figure-1.png": image.ref},
        files={"t.csv": file.ref},
        execution_count=1,
        truncated=True,
        usage=Usage(1.5, 0.5, 1 << 40),
    )
    await postgres_store.finish_run(result, Batch(artifacts=(image, file)), NOW)
    row = connection.execute(
        text("SELECT status, output, stderr, answer, wall_ms, cpu_ms, memory_peak_bytes FROM runs")
    ).one()
    answer = {
        "error": "Traceback …",
        "exception": {"name": "E", "value": "v", "traceback": ["one", "two"], "line": None},
        "results": [{"text/plain": "1"}, {"image": "figure-1.png"}],
        "images": {"figure-1.png": reference(image.ref)},
        "files": {"t.csv": reference(file.ref)},
        "execution_count": 1,
        "truncated": True,
    }
    assert tuple(row) == ("error", "1\n", "careful", answer, 1.5, 0.5, 1 << 40)


@pytest.mark.parametrize("large", [False, True])
async def test_what_a_run_was_given_is_in_its_row_until_it_ends(
    postgres_store: PostgresStore,
    connection: Connection,
    large: bool,  # noqa: FBT001
) -> None:
    files = {"a": b"\0\xff", "b": b"x" * (1 << 20 if large else 1)}
    run = new_run(inputs=RunInputs(files, ("a",), {"KEY": "s3cret"}))
    await postgres_store.add_run(run)
    reading = text("SELECT inputs, input_data FROM runs")
    sizes = [["a", 2], ["b", len(files["b"])]]
    inputs, data = connection.execute(reading).one()
    assert (inputs, bytes(data)) == (
        {"files": sizes, "fetch": ["a"], "env": {"KEY": "s3cret"}},
        b"".join(files.values()),
    )
    await postgres_store.finish_run(ok(run), Batch(), NOW)
    assert tuple(connection.execute(reading).one()) == (None, None)


async def test_a_run_that_a_crash_of_the_database_lost_is_added_again_with_what_it_was_given(
    postgres_store: PostgresStore, database_url: str
) -> None:
    run = new_run(inputs=RunInputs({"a": b"b"}))
    await postgres_store.add_run(run)
    execute(database_url, "DELETE FROM runs")
    await postgres_store.start_run(run.run_id, new_kernel_id(), NOW)
    assert [record.run.inputs for record in await postgres_store.unfinished_runs(run.gateway_id)] == [run.inputs]


def reference(ref: ArtifactRef) -> dict[str, Any]:
    return {"id": ref.id, "name": ref.name, "content_type": ref.content_type, "size_bytes": ref.size_bytes}


@pytest.fixture
def statements(postgres_store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the store sends, each with its parameters."""
    seen: list[tuple[str, Any]] = []
    run_quickly = postgres_store._quick.run

    async def run(statement: Prepared, parameters: Mapping[str, Any], **options: Any) -> Any:
        seen.append((statement.execute.partition(" (")[0], parameters))
        return await run_quickly(statement, parameters, **options)

    monkeypatch.setattr(postgres_store._quick, "run", run)
    for engine in (postgres_store._engine, postgres_store._bulk_engine):
        event.listen(engine, "before_cursor_execute", lambda *args: seen.append(args[2:4]))
    return seen


async def test_each_step_of_a_run_is_one_statement(
    postgres_store: PostgresStore, statements: list[tuple[str, Any]]
) -> None:
    run, session = new_run(idempotency_key="key"), new_session()
    await postgres_store.add_session(session)
    other = new_run()
    await postgres_store.add_run(run)
    await postgres_store.add_run(other)
    await postgres_store.start_run(run.run_id, new_kernel_id(), NOW)
    await postgres_store.append(run.run_id, Batch((output_event(1),), progress=progress(1)))
    await postgres_store.finish_run(ok(run), Batch((output_event(2),), (new_artifact(),)), NOW, session)
    await postgres_store.finish_run(ok(other), Batch((output_event(1),)), NOW, session)
    assert [statement.strip()[:14] for statement, _ in statements] == [
        *("INSERT INTO se", "EXECUTE add_ru", "EXECUTE add_ru", "EXECUTE start_", "EXECUTE append"),
        *("WITH run AS (\n", "EXECUTE finish"),
    ]


READS: list[Callable[[PostgresStore], Awaitable[object]]] = [
    lambda store: store.get_run(RunId("00000000-0000-4000-8000-000000000007")),
    lambda store: store.get_events(RunId("00000000-0000-4000-8000-000000000007"), 3, 10),
    lambda store: store.find_run(ANONYMOUS, "key 7"),
    lambda store: store.add_run(new_run(idempotency_key="key 7")),
    lambda store: store.unfinished_runs(GatewayId("gateway-a")),
    lambda store: store.list_runs(RunQuery(ANONYMOUS, 50)),
    lambda store: store.list_runs(RunQuery(ANONYMOUS, 50, before_number=5000)),
    lambda store: store.list_runs(RunQuery(ANONYMOUS, 50, session_id=SessionId("session 7"))),
    lambda store: store.list_runs(RunQuery(ANONYMOUS, 50, status=RunStatus.RUNNING)),
    lambda store: store.list_runs(RunQuery(ANONYMOUS, 50, created_from=NOW + timedelta(seconds=9990))),
    lambda store: store.list_runs(RunQuery(ANONYMOUS, 50, created_before=NOW + timedelta(seconds=10))),
]


@pytest.mark.parametrize("read", READS)
async def test_no_read_goes_through_all_rows(
    postgres_store: PostgresStore,
    connection: Connection,
    statements: list[tuple[str, Any]],
    read: Callable[[PostgresStore], Awaitable[object]],
) -> None:
    for statement in MANY_RUNS:
        connection.execute(text(statement), {"now": NOW})
    connection.commit()
    await read(postgres_store)
    statement, parameters = statements[-1]
    plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
    assert rows_looked_at(plan[0]["Plan"]) <= 1000


MANY_RUNS = [
    """
    INSERT INTO runs (run_id, tenant, gateway_id, session_id, language, timeout_s, created_at, finished_at, status,
                      idempotency_key, code, variables)
    SELECT CAST('00000000-0000-4000-8000-' || lpad(CAST(n AS text), 12, '0') AS uuid), 'anonymous', 'gateway-a',
           'session ' || n % 100, 'python', 30, :now + make_interval(secs => n),
           CASE WHEN n < 9990 THEN :now END, CASE WHEN n < 9990 THEN 'ok' ELSE 'running' END, 'key ' || n, 'pass', '{}'
    FROM generate_series(1, 10000) AS n
    """,
    """
    INSERT INTO events (run_id, seq, type, fields)
    SELECT run_id, seq, 'stdout', '{}' FROM runs, generate_series(1, 20) AS seq WHERE number % 10 = 7
    """,
    "ANALYZE",
]


def rows_looked_at(plan: dict[str, Any]) -> float:
    own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return max(own, *(rows_looked_at(child) for child in plan.get("Plans", [])), 0)


async def test_following_a_run_adds_to_no_index_of_runs(database_url: str, connection: Connection) -> None:
    run = new_run(code="x = 1\n" * 100_000)
    async with using_store(database_url, quick_pool_size=0) as store:  # the statistics of one connection are asked for
        await store.add_run(run)
        await store.start_run(run.run_id, new_kernel_id(), NOW)
        for seq in range(1, 100):
            await store.append(run.run_id, Batch((output_event(seq),), progress=progress(seq)))
        await store._calls.run(lambda used: used.execute(text("SELECT pg_stat_force_next_flush()")), timeout_s=5)
        await store.ping()
    updates = connection.execute(
        text("SELECT n_tup_upd, n_tup_hot_upd, n_tup_newpage_upd FROM pg_stat_user_tables WHERE relname = 'runs'")
    ).one()
    assert tuple(updates) == (100, 100, 0)
    assert connection.execute(text("SELECT pg_relation_size('runs')")).scalar_one() <= 2 * 8192


async def test_times_are_in_utc_whatever_the_server_thinks(postgres_store: PostgresStore, database_url: str) -> None:
    name = make_url(database_url).database
    execute(database_url, f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    run, session = new_run(started_at=NOW), new_session()
    await postgres_store.add_run(run)
    await postgres_store.finish_run(ok(run), Batch(), NOW)
    await postgres_store.add_session(session)
    record = await postgres_store.get_run(run.run_id)
    (kept,) = await postgres_store.sessions_of(session.gateway_id)
    assert record is not None
    times = record.run.created_at, record.run.started_at, record.finished_at, kept.created_at, kept.last_used_at
    assert [time and time.isoformat() for time in times] == [NOW.isoformat()] * 5


async def test_time_outs_changed_while_a_run_ends_stay_changed(
    postgres_store: PostgresStore, connection: Connection
) -> None:
    run, session = new_run(), new_session()
    await postgres_store.add_run(run)
    await postgres_store.add_session(session)
    changing = text("UPDATE sessions SET idle_timeout_s = 60, expires_at = last_used_at + interval '60 s'")
    connection.execute(changing)  # not yet committed
    at = NOW + timedelta(seconds=10)
    finishing = asyncio.create_task(postgres_store.finish_run(ok(run), Batch(), at, replace(session, last_used_at=at)))
    await asyncio.sleep(0.2)
    assert not finishing.done()
    connection.commit()
    await finishing
    times = connection.execute(text("SELECT idle_timeout_s, expires_at FROM sessions")).one()
    assert tuple(times) == (60.0, at + timedelta(seconds=60))


async def test_the_server_ends_a_statement_that_we_hung_up_on(
    postgres_store: PostgresStore, connection: Connection
) -> None:
    with pytest.raises(StoreUnavailable):
        await postgres_store._calls.run(lambda used: used.execute(text("SELECT pg_sleep(120)")), timeout_s=0.3)
    sleeping = text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'")
    assert connection.execute(sleeping).scalar_one() == 1
    async with asyncio.timeout(10):
        while connection.execute(sleeping).scalar_one():
            connection.rollback()  # the view is frozen for the length of a transaction
            await asyncio.sleep(0.1)


async def test_two_gateways_expire_the_same_runs_together(postgres_store: PostgresStore, database_url: str) -> None:
    for _ in range(150):
        run = new_run()
        await postgres_store.add_run(run)
        await postgres_store.finish_run(ok(run), Batch((output_event(1),)), NOW)
    other = PostgresStore(database_url)
    try:
        later = NOW.replace(year=NOW.year + 1)
        counts = await asyncio.gather(postgres_store.remove_expired(later), other.remove_expired(later))
    finally:
        await other.close()
    assert sum(counts) == 150
