"""Bulk beside what is small, calls that wait for a thread, and a database that answers but lacks something."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from doubles import ManualClock
from run_records import NOW, new_artifact, new_run, ok
from sqlalchemy import make_url, text
from store_fixtures import execute

from gateway.store.db_threads import DbThreads
from gateway.store.engine import make_engine
from gateway.store.postgres import PostgresStore
from sessions.errors import StoreBusy, StoreExhausted, StoreFull, StoreReadOnly, StoreUnavailable
from sessions.model import ANONYMOUS, Batch, Event, EventType
from sessions.output.fold import RunFold
from sessions.runs.recorder import Recorder
from sessions.settings import Limits, Timeouts

LARGE = bytes(range(256)) * 8192
TIMEOUT_S = 1.0


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(database_url, timeout_s=TIMEOUT_S, pool_size=2, bulk_pool_size=1)
    try:
        yield store
    finally:
        await store.close()


async def slow(calls: DbThreads, seconds: float) -> None:
    await calls.run(lambda used: used.execute(text(f"SELECT pg_sleep({seconds})")), timeout_s=30)


async def test_bulk_keeps_nobody_else_waiting(store: PostgresStore) -> None:
    run, artifact = new_run(), new_artifact(LARGE)
    await store.add_run(run)
    await store.append(run.run_id, Batch((), (artifact,)))
    sleeping = asyncio.create_task(slow(store._bulk_calls, 4))
    large = [asyncio.create_task(store.get_artifact(artifact.ref.id)) for _ in range(20)]
    await asyncio.sleep(0.1)
    await store.ping()
    assert await store.add_run(new_run()) is None
    assert await store.find_run(ANONYMOUS, "never used") is None
    record = await store.get_run(run.run_id)
    assert record is not None
    assert record.run == run
    assert await store.find_artifact(artifact.ref.id) == artifact.ref
    assert not sleeping.done()
    # They waited for longer than a call may take, and that was no error.
    assert await asyncio.gather(*large) == [artifact] * 20
    await sleeping


async def test_what_is_large_goes_by_the_lane_for_bulk(store: PostgresStore) -> None:
    run, artifact = new_run(code="x = 1\n" * 100_000), new_artifact(LARGE)
    key = new_run(idempotency_key="k")
    await store.add_run(key)
    sleeping = [asyncio.create_task(slow(store._calls, 4 * TIMEOUT_S)) for _ in range(2)]
    await asyncio.sleep(0.1)
    await store.add_run(run)
    await store.append(run.run_id, Batch((), (artifact,)))
    await store.append(run.run_id, Batch((Event(1, EventType.STDOUT, {"text": "x" * 300_000}),)))
    await store.append(run.run_id, Batch((Event(2, EventType.RESULT, {"data": {"text/html": "x" * 300_000}}),)))
    await store.finish_run(ok(run, output="x" * 1_000_000), Batch(), NOW)
    assert await store.read_artifact(artifact.ref.id, 256, 1 << 20) == LARGE[256 : 256 + (1 << 20)]
    with pytest.raises(StoreBusy):
        await store.ping()
    for task in sleeping:
        await task
    record = await store.get_run(run.run_id)
    assert record is not None
    assert (record.run.code, record.result and len(record.result.output)) == (run.code, 1_000_000)
    found = await store.find_run(key.tenant, "k")
    assert found is not None
    assert found.run == key


async def test_a_calls_time_begins_in_its_thread(database_url: str) -> None:
    calls = DbThreads(make_engine(database_url, pool_size=1, connect_timeout_s=5), threads=1, wait_s=10)
    first = asyncio.create_task(slow(calls, 1.5))
    await asyncio.sleep(0.1)
    assert await calls.run(lambda used: used.execute(text("SELECT 1")).scalar_one(), timeout_s=1) == 1
    await first
    await calls.close()


async def test_who_finds_no_thread_is_told_that_the_database_is_busy(database_url: str) -> None:
    calls = DbThreads(make_engine(database_url, pool_size=1, connect_timeout_s=5), threads=1, wait_s=0.3)
    first = asyncio.create_task(slow(calls, 1.5))
    await asyncio.sleep(0.1)
    done: list[int] = []
    begun = time.monotonic()
    with pytest.raises(StoreBusy, match="busy"):
        await calls.run(lambda _: done.append(1), timeout_s=1)
    assert time.monotonic() - begun < 1
    await first
    await calls.close()
    assert done == []


async def test_pieces_of_an_artifact_are_read_by_themselves(store: PostgresStore) -> None:
    run, artifact = new_run(), new_artifact(LARGE)
    await store.add_run(run)
    await store.append(run.run_id, Batch((), (artifact,)))
    size = 300_000
    pieces = [await store.read_artifact(artifact.ref.id, at, size) for at in range(0, len(LARGE) + 2 * size, size)]
    assert b"".join(pieces) == LARGE
    assert pieces[-1] == b""
    assert await store.read_artifact(new_artifact().ref.id, 0, size) == b""
    assert await store.find_artifact(new_artifact().ref.id) is None


async def test_a_page_of_events_ends_when_it_is_large(store: PostgresStore) -> None:
    run = new_run()
    await store.add_run(run)
    noise = [f"{number * 7919**9 % 10**33:033d}" for number in range(6000)]  # compresses badly
    large = [Event(seq, EventType.STDOUT, {"text": "".join(noise[::seq])}) for seq in range(1, 8)]
    await store.append(run.run_id, Batch(tuple(large)))
    pages, after = [], 0
    while page := await store.get_events(run.run_id, after, 50):
        pages.append(page)
        after = page[-1].seq
    assert [event for page in pages for event in page] == large
    assert len(pages) > 1


# --- what the database lacks ------------------------------------------------------------------------------------------


def refuse_writes(url: str, sqlstate: str, message: str) -> None:
    """As a server does whose disk is full."""
    raising = f"RAISE EXCEPTION USING ERRCODE = '{sqlstate}', MESSAGE = '{message}'"
    function = f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {raising}; END $$"
    triggers = [
        f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION refuse()"
        for table in ("runs", "events")
    ]
    execute(url, function, *triggers)


def accept_writes(url: str) -> None:
    execute(url, "DROP FUNCTION refuse CASCADE")


@pytest.mark.parametrize(
    ("sqlstate", "kind", "sentence"),
    [
        ("53100", StoreFull, "The disk of the database is full"),
        ("25006", StoreReadOnly, "read-only"),
        ("53200", StoreExhausted, "no memory or no connections"),
        ("53300", StoreExhausted, "no memory or no connections"),
        ("57014", StoreUnavailable, "out of reach"),
    ],
)
async def test_what_the_database_lacks_is_said(
    database_url: str, store: PostgresStore, sqlstate: str, kind: type[StoreUnavailable], sentence: str
) -> None:
    refuse_writes(database_url, sqlstate, "could not extend file")
    with pytest.raises(StoreUnavailable, match=sentence) as caught:
        await store.add_run(new_run())
    assert (type(caught.value), caught.value.code, caught.value.retry_after_s) == (kind, "unavailable", 2)
    await store.ping()
    accept_writes(database_url)
    await store.add_run(new_run())


async def test_nothing_is_lost_while_the_disk_is_full(
    database_url: str, store: PostgresStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run()
    await store.add_run(run)
    refuse_writes(database_url, "53100", "could not extend file: No space left on device")
    recorder = Recorder(run.run_id, RunFold(run.run_id, Limits()), store, ManualClock(), Timeouts())
    finishing = asyncio.create_task(recorder.finish(ok(run, output="kept")))
    await asyncio.sleep(0.5)
    assert not finishing.done()
    assert recorder.failure == "The disk of the database is full"
    accept_writes(database_url)
    await finishing
    record = await store.get_run(run.run_id)
    assert record is not None
    assert record.result is not None
    assert record.result.output == "kept"
    said = capsys.readouterr()
    assert (said.out + said.err).count("store_unusable") == 1


async def test_a_server_without_a_connection_to_spare_is_not_out_of_reach(database_url: str) -> None:
    execute(database_url, "CREATE ROLE crowded LOGIN SUPERUSER CONNECTION LIMIT 0", "ALTER ROLE crowded NOSUPERUSER")
    url = make_url(database_url).set(username="crowded").render_as_string(hide_password=False)
    store = PostgresStore(url, timeout_s=TIMEOUT_S)
    try:
        with pytest.raises(StoreExhausted):
            await store.ping()
    finally:
        await store.close()
        execute(database_url, "DROP ROLE crowded")


async def test_a_connection_is_closed_behind_what_is_large_and_kept_otherwise(store: PostgresStore) -> None:
    async def backend() -> int:
        return await store._bulk_calls.run(
            lambda used: int(used.execute(text("SELECT pg_backend_pid()")).scalar_one()), timeout_s=30
        )

    run, small, large = new_run(), new_artifact(bytes(1 << 20)), new_artifact(bytes(6 << 20))
    await store.add_run(run)
    first = await backend()
    await store.append(run.run_id, Batch((), (small,)))
    await store.get_artifact(small.ref.id)
    assert await backend() == first
    await store.append(run.run_id, Batch((), (large,)))
    second = await backend()
    assert second != first
    assert await store.read_artifact(large.ref.id, 0, 256 << 10) == bytes(256 << 10)
    assert await backend() == second
    assert await store.get_artifact(large.ref.id) == large
    assert await backend() != second


async def test_large_variables_go_by_the_lane_for_bulk(store: PostgresStore) -> None:
    sleeping = [asyncio.create_task(slow(store._calls, 3 * TIMEOUT_S)) for _ in range(2)]
    await asyncio.sleep(0.1)
    await store.add_run(new_run(variables={"text": "x" * 300_000}))
    for task in sleeping:
        await task


async def test_no_more_connections_are_opened_than_operators_are_told(database_url: str) -> None:
    store = PostgresStore(database_url)
    name = make_url(database_url).database
    try:
        await asyncio.gather(
            *(slow(lane, 0.2) for lane in [store._calls, store._bulk_calls] * 10),
            *(store.add_run(new_run()) for _ in range(20)),
        )
        counted = text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name")
        opened = await store._calls.run(lambda used: used.execute(counted, {"name": name}).scalar_one(), timeout_s=30)
    finally:
        await store.close()
    assert opened == 9
