"""A gateway that takes over the runs of another one on the same database: nothing that the other writes counts then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from run_records import NOW, new_artifact, new_kernel_id, new_run, new_session, ok, output_event, progress
from sqlalchemy import Connection, event, text
from store_fixtures import OwnServer, using_store

from gateway.store import writing
from gateway.store.postgres import PostgresStore
from gateway.store.statements import runs
from sessions.errors import NotFound, StoreUnavailable
from sessions.model import Batch, Event, Run, RunStatus

OLD = Batch((output_event(2, "old"),), progress=progress(2))
YOUNG = Batch((output_event(2, "young"),), progress=progress(3))
BY_ANOTHER = text("UPDATE runs SET epoch = epoch + 1")


@pytest.fixture
async def old(postgres_store: PostgresStore) -> PostgresStore:
    """The store of the gateway that was there before."""
    return postgres_store


@pytest.fixture
async def young(database_url: str) -> AsyncIterator[PostgresStore]:
    """The store of the one that takes over."""
    async with using_store(database_url) as store:
        yield store


async def add(store: PostgresStore) -> Run:
    run = new_run()
    await store.add_run(run)
    await store.append(run.run_id, Batch((output_event(1),), progress=progress(1)))
    return run


async def take_over(store: PostgresStore, run: Run) -> None:
    (record,) = await store.unfinished_runs(run.gateway_id)
    assert record.run == run


async def output(store: PostgresStore, run: Run) -> list[Event]:
    return await store.get_events(run.run_id, 0, 100)


WRITES: dict[str, Callable[[PostgresStore, Run], Awaitable[None]]] = {
    "append": lambda store, run: store.append(run.run_id, OLD),
    "append without progress": lambda store, run: store.append(run.run_id, replace(OLD, progress=None)),
    "append of more than one statement takes": lambda store, run: store.append(
        run.run_id, replace(OLD, artifacts=tuple(new_artifact(bytes(3 << 20)) for _ in range(2)))
    ),
    "finish": lambda store, run: store.finish_run(ok(run), OLD, NOW, new_session(runs=1, version=1)),
    "withdraw": lambda store, run: store.withdraw_run(run.run_id),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_what_the_other_writes_later_is_ignored(
    old: PostgresStore,
    young: PostgresStore,
    connection: Connection,
    write: Callable[[PostgresStore, Run], Awaitable[None]],
) -> None:
    run, session = await add(old), new_session()
    await old.add_session(session)
    await take_over(young, run)
    before = await young.get_run(run.run_id)
    await write(old, run)
    assert await young.get_run(run.run_id) == before
    assert await output(young, run) == [output_event(1)]
    assert connection.execute(text("SELECT count(*) FROM artifacts")).scalar_one() == 0
    assert await young.sessions_of(session.gateway_id) == [session]


async def test_the_other_cannot_start_it_any_more(old: PostgresStore, young: PostgresStore) -> None:
    run = await add(old)
    await take_over(young, run)
    with pytest.raises(NotFound, match="taken it over"):
        await old.start_run(run.run_id, new_kernel_id(), NOW)
    record = await young.get_run(run.run_id)
    assert record is not None
    assert (record.run, record.status) == (run, RunStatus.QUEUED)


async def test_who_has_taken_it_over_goes_on_with_it(old: PostgresStore, young: PostgresStore) -> None:
    run, kernel_id = await add(old), new_kernel_id()
    for _ in range(2):
        await take_over(young, run)
    await young.start_run(run.run_id, kernel_id, NOW)
    await young.append(run.run_id, replace(YOUNG, progress=None))
    await old.append(run.run_id, OLD)
    await young.append(run.run_id, Batch((output_event(3),), progress=progress(4)))
    record = await young.get_run(run.run_id)
    assert record is not None
    assert (record.status, record.run.kernel_id, record.progress) == (RunStatus.RUNNING, kernel_id, progress(4))
    await young.finish_run(ok(run), Batch((output_event(4),)), NOW)
    assert await output(young, run) == [output_event(1), *YOUNG.events, output_event(3), output_event(4)]
    assert repr(young) == "<PostgresStore reachable, 0 living runs>"


async def test_who_has_taken_it_over_may_withdraw_it(old: PostgresStore, young: PostgresStore) -> None:
    run = await add(old)
    await take_over(young, run)
    await young.withdraw_run(run.run_id)
    assert await young.get_run(run.run_id) is None


async def test_what_is_being_written_is_waited_for(
    old: PostgresStore, young: PostgresStore, connection: Connection
) -> None:
    run = await add(old)
    writing.append(connection, run.run_id, 0, replace(OLD, progress=None))  # not yet committed
    taking = asyncio.create_task(take_over(young, run))
    await asyncio.sleep(0.2)
    assert not taking.done()
    connection.commit()
    await taking
    assert await output(young, run) == [output_event(1), *OLD.events]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_what_comes_while_it_is_being_taken_over_is_ignored(
    old: PostgresStore, connection: Connection, write: Callable[[PostgresStore, Run], Awaitable[None]]
) -> None:
    run = await add(old)
    connection.execute(BY_ANOTHER)  # not yet committed
    late = asyncio.create_task(write(old, run))
    await asyncio.sleep(0.2)
    assert not late.done()
    connection.commit()
    await late
    record = await old.get_run(run.run_id)
    assert record is not None
    assert record.finished_at is None
    assert await output(old, run) == [output_event(1)]


async def test_a_take_over_that_hung_takes_nothing_from_a_later_one(
    old: PostgresStore, young: PostgresStore, connection: Connection
) -> None:
    run = await add(old)
    seen = connection.execute(text("SELECT run_id::text, epoch FROM runs")).all()
    connection.commit()
    await take_over(young, run)
    assert connection.execute(runs.TAKE_OVER, runs.take_over_parameters(run.gateway_id, seen)).all() == []
    connection.commit()
    await young.append(run.run_id, YOUNG)
    assert await output(young, run) == [output_event(1), *YOUNG.events]


async def test_a_take_over_that_another_came_before_is_done_once_more(
    old: PostgresStore, young: PostgresStore, connection: Connection
) -> None:
    run = await add(old)
    updates: list[str] = []

    def interfere(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().startswith("UPDATE"):
            updates.append(statement)
            if len(updates) == 1:
                connection.execute(BY_ANOTHER)
                connection.commit()

    event.listen(young._engine, "before_cursor_execute", interfere)
    await take_over(young, run)
    event.remove(young._engine, "before_cursor_execute", interfere)
    assert len(updates) == 2
    await young.append(run.run_id, YOUNG)
    assert await output(young, run) == [output_event(1), *YOUNG.events]


async def test_a_statement_that_survives_its_gateway_at_a_hung_server_takes_no_event_from_the_next_one(
    own_server: OwnServer,
) -> None:
    old, young = PostgresStore(own_server.url, timeout_s=0.5), PostgresStore(own_server.url, timeout_s=5)
    try:
        run = await add(old)
        own_server.hang()
        with pytest.raises(StoreUnavailable):
            await old.append(run.run_id, OLD)
        own_server.resume()
        await take_over(young, run)
        there = await output(young, run)
        mine = [output_event(seq, "young") for seq in range(len(there) + 1, len(there) + 3)]
        await young.finish_run(ok(run), Batch(tuple(mine)), NOW)
        assert await output(young, run) == [*there, *mine]
    finally:
        own_server.resume()
        for store in (old, young):
            await store.close()
