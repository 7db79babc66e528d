"""When sessions end by themselves, by a clock that the test owns; and how they end without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from doubles import ManualClock, until
from workbench import Bench, S

from sessions.errors import NotFound, StoreUnavailable
from sessions.model import ANONYMOUS, RunId, RunStatus, Session, SessionId
from sessions.settings import Timeouts


class Timed(Bench):
    """A bench whose time passes when the test says so."""

    async def after(self, seconds: float) -> None:
        """Let time pass, and sessions be looked at."""
        assert isinstance(self.clock, ManualClock)
        self.clock.at_s += seconds
        await asyncio.sleep(0.04)

    def names(self) -> list[str]:
        names = [view.session.session_id for view in self.service.list_sessions(ANONYMOUS)]
        assert sorted(names) == sorted(name for _, name in self.store.sessions)
        return names


@pytest.fixture
async def bench(timeouts: Timeouts) -> AsyncIterator[Timed]:
    bench = Timed(clock=ManualClock(), timeouts=timeouts)
    await bench.start()
    yield bench
    await bench.stop()


async def test_a_session_that_is_not_used_ends_with_its_sandbox(bench: Timed) -> None:
    await bench.create(idle_timeout_s=10.0)
    await bench.create(SessionId("t"), idle_timeout_s=20.0)
    kernel_id = bench.session().kernel_id
    await bench.after(9.9)
    assert bench.names() == [S, "t"]
    await bench.after(0.1)
    await until(lambda: bench.names() == ["t"])
    await until(lambda: kernel_id not in bench.engine.sandboxes)
    with pytest.raises(NotFound):
        bench.service.get_session(ANONYMOUS, S)


async def test_a_run_begins_the_idle_time_anew_when_it_ends_and_is_not_idle_before(bench: Timed) -> None:
    await bench.create(idle_timeout_s=10.0)
    running = bench.begin("work", session_id=S)
    kernel = await bench.sent("work")
    await bench.after(50.0)
    assert bench.names() == [S]
    kernel.end()
    assert (await running).status is RunStatus.OK
    await bench.after(9.0)
    assert bench.names() == [S]
    await bench.after(1.0)
    await until(lambda: bench.names() == [])


async def test_a_renewal_begins_the_idle_time_anew(bench: Timed) -> None:
    await bench.create(idle_timeout_s=10.0)
    await bench.after(9.0)
    await bench.service.renew_session(ANONYMOUS, S, idle_timeout_s=None, max_lifetime_s=None)
    await bench.after(9.0)
    assert bench.names() == [S]
    await bench.service.renew_session(ANONYMOUS, S, idle_timeout_s=100.0, max_lifetime_s=None)
    await bench.after(90.0)
    assert bench.names() == [S]
    await bench.after(10.0)
    await until(lambda: bench.names() == [])


async def test_looking_at_the_files_begins_the_idle_time_anew(bench: Timed) -> None:
    await bench.create(idle_timeout_s=10.0)
    await bench.after(9.0)
    await bench.service.session_files(ANONYMOUS, S)
    await bench.after(9.0)
    assert bench.names() == [S]


async def test_at_its_longest_life_a_session_ends_with_what_runs(bench: Timed) -> None:
    await bench.create(idle_timeout_s=1000.0, max_lifetime_s=30.0)
    running = bench.begin("work", session_id=S)
    kernel = await bench.sent("work")
    await bench.after(29.0)
    assert not kernel.interrupts()
    await bench.after(1.0)
    await until(lambda: kernel.interrupts() == [kernel.msg_id])
    kernel.interrupted()
    result = await running
    assert (result.status, result.error) == (
        RunStatus.CANCELLED,
        "The session reached its max_lifetime of 30 s.\nKeyboardInterrupt",
    )
    await until(lambda: bench.names() == [])


async def test_a_session_that_expires_while_the_database_is_away_ends_once_it_is_back(bench: Timed) -> None:
    await bench.create(idle_timeout_s=10.0)
    bench.store.is_reachable = False
    await bench.after(10.0)
    assert bench.service.get_session(ANONYMOUS, S).session.session_id == S
    bench.store.is_reachable = True
    await until(lambda: bench.names() == [])


async def test_a_session_whose_row_could_not_be_removed_gives_way_to_a_new_one(bench: Timed) -> None:
    steps = ("update_session", "remove_session")
    methods = [getattr(bench.store, step) for step in steps]

    async def unavailable(*_: object) -> None:
        raise StoreUnavailable

    for step in steps:
        setattr(bench.store, step, unavailable)
    with pytest.raises(StoreUnavailable):
        await bench.begin("x", session_id=S)
    for step, method in zip(steps, methods, strict=True):
        setattr(bench.store, step, method)
    assert bench.service.list_sessions(ANONYMOUS) == []
    assert [*bench.store.sessions] == [(ANONYMOUS, S)]
    await bench.after(60.0)
    assert (await bench.serve("x", session_id=S)).session_created
    assert bench.names() == [S]
    assert bench.session().created_at == bench.service.get_session(ANONYMOUS, S).session.created_at


async def test_a_session_that_is_being_made_at_a_hand_over_is_undone_and_says_why(bench: Timed) -> None:
    sessions = bench.service._sessions
    add_session, adding = bench.store.add_session, asyncio.Event()

    async def late(session: Session) -> None:
        await add_session(session)
        await adding.wait()
        raise StoreUnavailable

    bench.store.add_session = late  # type: ignore[method-assign,assignment]
    making = asyncio.ensure_future(bench.create())
    await until(lambda: bench.store.sessions != {})
    await sessions.hand_over()
    adding.set()
    with pytest.raises(StoreUnavailable):
        await making
    assert bench.store.sessions == {}


# --- deleted in an outage ---------------------------------------------------------------------------------------------


async def deletion_in_an_outage(bench: Bench) -> tuple[RunId, asyncio.Future[None]]:
    """Of a session whose run has ended, which cannot be stored."""
    run_id = await bench.record("work", session_id=S)
    kernel = await bench.sent("work")
    deleting = asyncio.ensure_future(bench.service.delete_session(ANONYMOUS, S))
    await until(lambda: kernel.interrupts() == [kernel.msg_id])
    bench.store.is_reachable = False
    kernel.interrupted()
    return run_id, deleting


@pytest.mark.timeouts(end_timeout_s=0.02)
async def test_a_deletion_does_not_last_as_long_as_an_outage(bench: Timed) -> None:
    run_id, deleting = await deletion_in_an_outage(bench)
    async with asyncio.timeout(5):
        await deleting
    assert not bench.has_ended(run_id)
    bench.store.is_reachable = True
    assert (await bench.service.result(run_id)).status is RunStatus.CANCELLED


@pytest.mark.timeouts(end_timeout_s=30.0)
async def test_who_comes_after_a_deletion_does_not_wait_for_it_in_an_outage(bench: Timed) -> None:
    _, deleting = await deletion_in_an_outage(bench)
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable):
            await bench.begin("next", session_id=S)
    assert not deleting.done()
    bench.store.is_reachable = True
    await deleting
    assert (await bench.serve("next", session_id=S)).session_created
