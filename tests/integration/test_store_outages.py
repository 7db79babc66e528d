"""A PostgreSQL that is stopped, killed, restarted or hung: an error in bounded time, and recovery by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from doubles import ManualClock
from run_records import NOW, new_artifact, new_kernel_id, new_run, ok, progress
from store_fixtures import OwnServer, execute

from gateway.store.postgres import PostgresStore
from sessions.errors import StoreUnavailable
from sessions.model import Batch, Event, EventType, Result, RunStatus
from sessions.output.fold import RunFold
from sessions.runs.recorder import Recorder
from sessions.settings import Limits, Timeouts

TIMEOUT_S = 1.0
SLACK_S = 3.0
POOL_SIZE = 2


@pytest.fixture
async def store(own_server: OwnServer) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(own_server.url, timeout_s=TIMEOUT_S, pool_size=POOL_SIZE)
    try:
        await store.ping()
        yield store
    finally:
        own_server.resume()
        await store.close()


async def assert_unavailable_in_time(store: PostgresStore) -> None:
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.add_run(new_run())
    assert time.monotonic() - begun < TIMEOUT_S + SLACK_S


async def write_whole_run(store: PostgresStore) -> None:
    run, artifact = new_run(), new_artifact()
    await store.add_run(run)
    await store.finish_run(ok(run), Batch((Event(1, EventType.STDOUT, {"text": "1"}),), (artifact,)), NOW)
    assert await store.get_artifact(artifact.ref.id) == artifact


@pytest.mark.parametrize("end", [OwnServer.stop, OwnServer.kill])
async def test_a_server_that_went_away_is_used_again_when_it_is_back(
    own_server: OwnServer, store: PostgresStore, end: Callable[[OwnServer], None]
) -> None:
    end(own_server)
    for _ in range(2 * POOL_SIZE):
        await assert_unavailable_in_time(store)
    own_server.start()
    await write_whole_run(store)


@pytest.mark.parametrize("end", [OwnServer.stop, OwnServer.kill])
async def test_a_restart_that_nobody_saw_costs_no_error(
    own_server: OwnServer, store: PostgresStore, end: Callable[[OwnServer], None]
) -> None:
    await asyncio.gather(*(store.ping() for _ in range(POOL_SIZE)))
    end(own_server)
    own_server.start()
    await asyncio.gather(*(write_whole_run(store) for _ in range(2 * POOL_SIZE)))


async def test_the_end_of_a_run_waits_for_a_restarting_server(own_server: OwnServer, store: PostgresStore) -> None:
    run = new_run()
    await store.add_run(run)
    own_server.stop()
    fold = RunFold(run.run_id, Limits())
    recorder = Recorder(run.run_id, fold, store, ManualClock(), Timeouts())
    finishing = asyncio.create_task(recorder.finish(ok(run)))
    await asyncio.sleep(0.3)
    assert not finishing.done()
    own_server.start()
    await finishing
    assert await store.unfinished_runs(run.gateway_id) == []


async def test_a_run_whose_row_a_crash_took_is_finished_all_the_same(
    own_server: OwnServer, store: PostgresStore
) -> None:
    run, artifact = new_run(), new_artifact()
    await store.add_run(run)
    execute(own_server.url, "DELETE FROM runs")
    await store.finish_run(ok(run), Batch(artifacts=(artifact,)), NOW)
    assert await store.get_artifact(artifact.ref.id) == artifact


@pytest.mark.parametrize("is_crashed_before_the_start", [True, False])
async def test_a_run_whose_row_a_crash_took_goes_on_where_it_was_started(
    own_server: OwnServer,
    store: PostgresStore,
    is_crashed_before_the_start: bool,  # noqa: FBT001
) -> None:
    run, kernel_id = new_run(session_id="s"), new_kernel_id()
    await store.add_run(run)
    if is_crashed_before_the_start:
        execute(own_server.url, "DELETE FROM runs")
    await store.start_run(run.run_id, kernel_id, NOW)
    if not is_crashed_before_the_start:
        execute(own_server.url, "DELETE FROM runs")
    await store.append(run.run_id, Batch(progress=progress(1)))
    (record,) = await store.unfinished_runs(run.gateway_id)
    assert record.run == replace(run, kernel_id=kernel_id, started_at=NOW)
    assert (record.status, record.progress) == (RunStatus.RUNNING, progress(1))


async def test_a_run_with_a_key_or_no_kernel_outlives_a_crash_of_both_that_another_may_not(
    own_server: OwnServer, store: PostgresStore
) -> None:
    # Nobody but the commits themselves may write the log to disk.
    execute(own_server.url, "ALTER SYSTEM SET wal_writer_delay = '10s'", "SELECT pg_reload_conf()")
    with_key = [new_run(idempotency_key=str(number)) for number in range(2)]
    for run in with_key:
        await store.add_run(run)
    await store.start_run(with_key[1].run_id, new_kernel_id(), NOW)
    waiting = new_run(session_id="s")
    await store.add_run(waiting)
    await store.add_run(new_run(kernel_id=new_kernel_id(), started_at=NOW))
    own_server.kill()
    own_server.start()
    records = await store.unfinished_runs(waiting.gateway_id)
    assert [(record.run.run_id, record.status) for record in records] == [
        (with_key[0].run_id, RunStatus.QUEUED),
        (with_key[1].run_id, RunStatus.RUNNING),
        (waiting.run_id, RunStatus.QUEUED),
    ]


async def test_a_hung_server_keeps_no_thread(own_server: OwnServer, store: PostgresStore) -> None:
    await asyncio.gather(*(store.ping() for _ in range(POOL_SIZE)))
    own_server.hang()
    begun = time.monotonic()
    answers = await asyncio.gather(*(store.ping() for _ in range(3 * POOL_SIZE)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * (3 * POOL_SIZE)
    assert time.monotonic() - begun < TIMEOUT_S + SLACK_S
    await assert_unavailable_in_time(store)
    own_server.resume()
    await asyncio.wait_for(_until_reachable(store), 5)
    await write_whole_run(store)


async def leave_calls_at_a_hung_server(own_server: OwnServer, store: PostgresStore) -> None:
    """Occupy every thread, let the callers go away, and wait until the calls' time is over."""
    await asyncio.gather(*(store.ping() for _ in range(POOL_SIZE)))
    own_server.hang()
    calls = [asyncio.create_task(store.ping()) for _ in range(POOL_SIZE)]
    await asyncio.sleep(0.1)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert all(call.cancelled() for call in calls)
    await asyncio.sleep(TIMEOUT_S)


async def test_callers_that_went_away_leave_no_thread_at_a_hung_server(
    own_server: OwnServer, store: PostgresStore
) -> None:
    await leave_calls_at_a_hung_server(own_server, store)
    async with asyncio.timeout(SLACK_S):
        await store.close()  # waits for the threads


async def test_without_hanging_up_the_threads_would_stay(
    own_server: OwnServer, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.store.db_threads.AbortableCall._disconnect", staticmethod(lambda _wire: None))
    await leave_calls_at_a_hung_server(own_server, store)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SLACK_S):
            await store.close()


async def test_a_server_that_falls_silent_right_after_the_log_in_keeps_no_thread() -> None:
    def message(kind: bytes, body: bytes) -> bytes:
        return kind + (len(body) + 4).to_bytes(4) + body

    settings = {"server_version": "18.0", "client_encoding": "UTF8", "DateStyle": "ISO, MDY", "integer_datetimes": "on"}
    greeting = message(b"R", bytes(4)) + message(b"K", bytes(8))
    greeting += b"".join(message(b"S", f"{name}\0{value}\0".encode()) for name, value in settings.items())
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)  # the start-up message
        writer.write(greeting + message(b"Z", b"I"))
        asked.set() if await reader.read(4096) else None
        await reader.read()  # until the client hangs up
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"postgresql://u:p@127.0.0.1:{port}/d?sslmode=disable&gssencmode=disable"
        store = PostgresStore(url, timeout_s=TIMEOUT_S, pool_size=1)
        await assert_unavailable_in_time(store)
        assert asked.is_set()
        async with asyncio.timeout(SLACK_S):
            await store.close()


async def test_the_loop_is_never_blocked_by_a_hung_server(own_server: OwnServer, store: PostgresStore) -> None:
    own_server.hang()
    calling = asyncio.create_task(assert_unavailable_in_time(store))
    longest_s = 0.0
    while not calling.done():
        begun = time.monotonic()
        await asyncio.sleep(0.01)
        longest_s = max(longest_s, time.monotonic() - begun)
    await calling
    assert longest_s < 0.8 * TIMEOUT_S


async def test_a_write_that_a_hang_interrupted_can_be_repeated(own_server: OwnServer, store: PostgresStore) -> None:
    run = new_run()
    await store.add_run(run)
    result = Result(run.run_id, RunStatus.OK, "1\n")
    own_server.hang()
    with pytest.raises(StoreUnavailable):
        await store.finish_run(result, Batch((Event(1, EventType.END, {}),)), datetime.now(UTC))
    own_server.resume()
    await asyncio.wait_for(_until_reachable(store), 5)
    await store.finish_run(result, Batch((Event(1, EventType.END, {}),)), datetime.now(UTC))
    assert await store.unfinished_runs(run.gateway_id) == []


async def test_a_read_only_server_is_an_outage(own_server: OwnServer, store: PostgresStore) -> None:
    execute(own_server.url, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
    async with asyncio.timeout(5):
        while True:
            try:
                await store.add_run(new_run())
            except StoreUnavailable:
                break
            await asyncio.sleep(0.02)


async def _until_reachable(store: PostgresStore) -> None:
    while True:
        try:
            await store.ping()
        except StoreUnavailable:
            await asyncio.sleep(0.05)
        else:
            return
