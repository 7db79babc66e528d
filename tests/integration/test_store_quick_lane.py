"""The writes of every run on connections without threads; and what becomes of those that fail there."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import psutil
import pytest
from run_records import NOW, new_artifact, new_kernel_id, new_run, new_session, ok, output_event, progress
from sqlalchemy import Connection, event, text
from store_fixtures import OwnServer, execute, using_store

from gateway.store.postgres import PostgresStore
from gateway.store.statements import runs
from sessions.errors import NotFound, StoreUnavailable
from sessions.model import Batch, Run, RunStatus

TIMEOUT_S = 1.0
SLACK_S = 3.0
OURS = "application_name = 'cellblock' AND datname = current_database()"
HANG_UP = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}"  # noqa: S608 - a constant


@pytest.fixture
def by_threads(postgres_store: PostgresStore) -> list[str]:
    """The statements that the threads have sent."""
    seen: list[str] = []
    event.listen(postgres_store._engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    return seen


async def write_run(store: PostgresStore, run: Run | None = None) -> Run:
    run = run or new_run()
    await store.add_run(run)
    await store.append(run.run_id, Batch((output_event(1),), progress=progress(1)))
    await store.finish_run(ok(run), Batch((output_event(2),)), NOW)
    return run


async def assert_written(store: PostgresStore, run: Run) -> None:
    record = await store.get_run(run.run_id)
    assert record is not None
    assert (record.run, record.result) == (run, replace(ok(run), session_id=run.session_id))
    assert await store.get_events(run.run_id, 0, 10) == [output_event(1), output_event(2)]


async def until_rested(store: PostgresStore) -> None:
    async with asyncio.timeout(30):
        while not store._quick.is_free():
            await asyncio.sleep(0.05)


async def test_what_every_run_writes_needs_no_thread(postgres_store: PostgresStore, by_threads: list[str]) -> None:
    odd = new_run(
        code="\x00 \ud800 \x1a ' %s :name $1 \\",
        variables={"%s": ["\x00", "\ud800", None, 1.5]},
        idempotency_key="\ud800 key",
        request_sha256=b"\x00\xff",
    )
    started = new_run(kernel_id=new_kernel_id(), started_at=NOW, session_id="s", allow_stdin=True)
    written = [await write_run(postgres_store, run) for run in (odd, started)]
    assert by_threads == []
    for run in written:
        await assert_written(postgres_store, run)


async def test_a_run_that_has_waited_is_started_without_a_thread(
    postgres_store: PostgresStore, by_threads: list[str]
) -> None:
    run, kernel_id = new_run(session_id="s"), new_kernel_id()
    await postgres_store.add_run(run)
    await postgres_store.start_run(run.run_id, kernel_id, NOW)
    assert by_threads == []
    record = await postgres_store.get_run(run.run_id)
    assert record is not None
    assert (record.status, record.run) == (RunStatus.RUNNING, replace(run, kernel_id=kernel_id, started_at=NOW))


async def test_the_session_of_a_run_is_written_with_its_end(
    postgres_store: PostgresStore, by_threads: list[str]
) -> None:
    session, run = new_session(), new_run()
    await postgres_store.add_session(session)
    await postgres_store.add_run(run)
    by_threads.clear()
    after = replace(session, version=session.version + 1, generation=7, runs=3)
    await postgres_store.finish_run(ok(run), Batch(), NOW, after)
    assert by_threads == []
    assert await postgres_store.sessions_of(session.gateway_id) == [after]


async def test_files_go_by_the_threads(postgres_store: PostgresStore, by_threads: list[str]) -> None:
    run, artifact = new_run(), new_artifact()
    await postgres_store.add_run(run)
    await postgres_store.finish_run(ok(run), Batch(artifacts=(artifact,)), NOW)
    assert len(by_threads) == 1
    assert await postgres_store.get_artifact(artifact.ref.id) == artifact


async def test_calls_beside_one_another_all_arrive(postgres_store: PostgresStore) -> None:
    for run in await asyncio.gather(*(write_run(postgres_store) for _ in range(30))):
        await assert_written(postgres_store, run)


async def test_a_connection_that_the_server_has_closed_is_not_used_again(
    postgres_store: PostgresStore, database_url: str
) -> None:
    await write_run(postgres_store)
    execute(database_url, HANG_UP)
    await assert_written(postgres_store, await write_run(postgres_store))
    await until_rested(postgres_store)
    await assert_written(postgres_store, await write_run(postgres_store))


async def test_a_write_whose_connection_breaks_is_done_by_a_thread(
    postgres_store: PostgresStore, database_url: str, connection: Connection
) -> None:
    run = new_run()
    await postgres_store.add_run(run)
    connection.execute(text("LOCK TABLE runs IN SHARE MODE"))
    finishing = asyncio.create_task(postgres_store.finish_run(ok(run), Batch((output_event(1),)), NOW))
    async with asyncio.timeout(30):
        while not postgres_store._quick._at_work:
            await asyncio.sleep(0.01)
    execute(database_url, f"{HANG_UP} AND query LIKE 'EXECUTE%'")
    connection.rollback()
    await finishing
    record = await postgres_store.get_run(run.run_id)
    assert record is not None
    assert record.result == ok(run)


async def test_a_pooler_that_forgets_what_was_prepared_costs_no_error(
    postgres_store: PostgresStore, by_threads: list[str]
) -> None:
    await write_run(postgres_store)
    (connection,) = postgres_store._quick._idle
    await connection.execute("DEALLOCATE ALL", (), TIMEOUT_S)
    await assert_written(postgres_store, await write_run(postgres_store))
    assert by_threads


async def test_a_value_that_cannot_be_sent_keeps_no_connection(postgres_store: PostgresStore) -> None:
    await write_run(postgres_store)
    parameters = {**runs.add_parameters(new_run(), 0), "variables": {"x": object()}}
    for _ in range(3):
        with pytest.raises(TypeError):
            await postgres_store._quick.run(runs.ADD_RUN_QUICKLY, parameters, timeout_s=TIMEOUT_S)
    assert len(postgres_store._quick._idle) == 1
    await assert_written(postgres_store, await write_run(postgres_store))


async def test_without_a_descriptor_to_spare_a_thread_writes(
    postgres_store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none_left(_raw: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("gateway.store.quick_lane._log_in", none_left)
    await assert_written(postgres_store, await write_run(postgres_store))
    assert not postgres_store._quick.is_free()


async def test_a_run_that_is_not_there_is_said(postgres_store: PostgresStore) -> None:
    with pytest.raises(NotFound):
        await postgres_store.finish_run(ok(new_run()), Batch(), NOW)
    with pytest.raises(NotFound):
        await postgres_store.append(new_run().run_id, Batch((output_event(1),), progress=progress(1)))


async def test_a_caller_that_goes_away_leaves_the_connection_to_others(
    postgres_store: PostgresStore, connection: Connection
) -> None:
    await write_run(postgres_store)
    run = new_run()
    connection.execute(text("LOCK TABLE runs IN SHARE MODE"))
    adding = asyncio.create_task(postgres_store.add_run(run))
    async with asyncio.timeout(30):
        while not postgres_store._quick._at_work:
            await asyncio.sleep(0.01)
    adding.cancel()
    await asyncio.wait([adding])
    connection.rollback()
    async with asyncio.timeout(30):
        while postgres_store._quick._at_work:
            await asyncio.sleep(0.01)
    assert await postgres_store.get_run(run.run_id) is not None
    await assert_written(postgres_store, await write_run(postgres_store))
    assert len(postgres_store._quick._idle) == 1


async def test_a_run_is_written_by_a_thread_when_no_descriptor_is_left_for_the_quick_lane(
    postgres_store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dup = os.dup

    def dup_in_threads(fd: int) -> int:
        if threading.current_thread() is threading.main_thread():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return dup(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", dup_in_threads)
        run = await write_run(postgres_store)
    await assert_written(postgres_store, run)
    await until_rested(postgres_store)
    await assert_written(postgres_store, await write_run(postgres_store))


async def test_a_shortage_of_descriptors_is_an_outage_which_is_waited_for(
    postgres_store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", none_left)
        with pytest.raises(StoreUnavailable):
            await postgres_store.add_run(new_run())
    await until_rested(postgres_store)
    await assert_written(postgres_store, await write_run(postgres_store))


async def test_parameters_that_cannot_be_sent_leave_the_connection_to_others(postgres_store: PostgresStore) -> None:
    await write_run(postgres_store)
    with pytest.raises(KeyError):
        await postgres_store._quick.run(runs.ADD_RUN_QUICKLY, {}, timeout_s=TIMEOUT_S)
    assert not postgres_store._quick._at_work
    assert len(postgres_store._quick._idle) == 1


@pytest.fixture
async def lone(own_server: OwnServer) -> AsyncIterator[PostgresStore]:
    """A store on a server that a test may hang."""
    async with using_store(own_server.url, timeout_s=TIMEOUT_S) as store:
        yield store
        own_server.resume()


@pytest.mark.parametrize("is_logged_in", [True, False])
async def test_a_server_that_hangs_is_given_up_in_time(
    own_server: OwnServer,
    lone: PostgresStore,
    is_logged_in: bool,  # noqa: FBT001
) -> None:
    if is_logged_in:
        await write_run(lone)
    own_server.hang()
    begun_s = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await lone.add_run(new_run())
    assert time.monotonic() - begun_s < TIMEOUT_S + SLACK_S
    own_server.resume()
    await until_rested(lone)
    await assert_written(lone, await write_run(lone))


async def test_a_server_that_is_away_leaves_no_descriptors(own_server: OwnServer, lone: PostgresStore) -> None:
    own_server.stop()
    before = 0
    for number in range(4):
        await until_rested(lone)
        with pytest.raises(StoreUnavailable):
            await lone.add_run(new_run())
        if number == 1:
            before = psutil.Process().num_fds()
    assert psutil.Process().num_fds() <= before
    own_server.start()
    await until_rested(lone)
    await assert_written(lone, await write_run(lone))


async def test_calls_under_way_end_before_the_store_is_closed(database_url: str, connection: Connection) -> None:
    async with using_store(database_url) as store:
        run = new_run()
        await store.add_run(run)
        connection.execute(text("LOCK TABLE runs IN SHARE MODE"))
        finishing = asyncio.create_task(store.finish_run(ok(run), Batch(), NOW))
        async with asyncio.timeout(30):
            while not store._quick._at_work:
                await asyncio.sleep(0.01)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
        connection.rollback()
        await asyncio.gather(finishing, closing)
        assert not store._quick._idle
