"""What is particular to the Postgres adapter: what an operator sees in the database, and how it goes about it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from run_records import NOW, new_artifact, new_run, ok, output_event
from sqlalchemy import Connection, create_engine, event, text

from gateway.store.postgres import PostgresStore
from sessions.errors import StoreUnavailable
from sessions.model import ArtifactKind, ArtifactRef, Batch, ExceptionInfo, RunStatus, Usage


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


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


def reference(ref: ArtifactRef) -> dict[str, Any]:
    return {"id": ref.id, "name": ref.name, "content_type": ref.content_type, "size_bytes": ref.size_bytes}


async def test_a_small_run_takes_two_statements(postgres_store: PostgresStore) -> None:
    await postgres_store.ping()
    seen: list[str] = []
    event.listen(postgres_store._engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    run = new_run()
    await postgres_store.add_run(run)
    await postgres_store.finish_run(ok(run), Batch((output_event(1),), (new_artifact(),)), NOW)
    assert [statement.split()[0] for statement in seen] == ["INSERT", "WITH"]


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
