"""What every Store promises of sessions, over each implementation: the in-memory one and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from run_records import NOW, new_kernel_id, new_run, new_session, ok

from sessions.model import (
    Batch,
    GatewayId,
    JupyterSession,
    JupyterSessionId,
    Session,
    SessionId,
    SessionNews,
    TenantId,
    Usage,
)
from sessions.ports import Store

HERE = GatewayId("gateway-a")
ELSEWHERE = GatewayId("gateway-b")
AWKWARD = "NUL \x00, lone surrogate \ud800, \u4e2d\u6587"
LATER = NOW + timedelta(seconds=7)
NOTEBOOK = JupyterSession(JupyterSessionId("j"), f"{AWKWARD}/a.ipynb", AWKWARD, "notebook")
CONSOLE = JupyterSession(JupyterSessionId("j"), "console", None, "console")


async def all_sessions(store: Store) -> list[Session]:
    return await store.sessions_of(HERE) + await store.sessions_of(ELSEWHERE)


def after_a_run(session: Session) -> Session:
    """All changed that may change."""
    return replace(
        session,
        kernel_id=new_kernel_id(),
        generation=session.generation + 1,
        news=SessionNews.LOST,
        version=session.version + 1,
        last_used_at=session.last_used_at + timedelta(seconds=7),
        runs=session.runs + 1,
        usage=Usage(1.5, 0.5, 1 << 40),
        idle_timeout_s=1.0,
        max_lifetime_s=2.0,
        jupyter=(CONSOLE,),
        jupyter_version=session.jupyter_version + 1,
    )


async def test_sessions_come_back_as_they_were_oldest_first(store: Store) -> None:
    young = new_session(created_at=LATER, session_id=SessionId("a"))
    old = new_session(
        tenant=TenantId(AWKWARD),
        session_id=SessionId(AWKWARD),
        language=AWKWARD,
        kernel_id=new_kernel_id(),
        generation=3,
        news=SessionNews.CREATED,
        version=1 << 40,
        runs=2,
        usage=Usage(1.5, 0.5, 1 << 40),
        jupyter=(NOTEBOOK,),
        jupyter_version=1 << 40,
    )
    foreign = new_session(gateway_id=ELSEWHERE)
    assert [await store.add_session(session) for session in (young, old, foreign)] == [None] * 3
    assert await store.sessions_of(HERE) == [old, young]


async def test_a_name_that_is_taken_stays_as_it_is_and_who_has_it_is_told(store: Store) -> None:
    first = new_session()
    await store.add_session(first)
    for second in (new_session(created_at=LATER), new_session(created_at=LATER, gateway_id=ELSEWHERE)):
        assert await store.add_session(second) == first
    assert await all_sessions(store) == [first]
    assert await store.add_session(new_session(tenant=TenantId("somebody"))) is None


async def test_adding_a_session_again_is_harmless(store: Store) -> None:
    session = new_session(gateway_id=HERE)
    await store.add_session(session)
    changed = replace(session, generation=1, version=1)
    await store.update_session(changed)
    assert await store.add_session(session) is None
    assert await all_sessions(store) == [changed]


@pytest.mark.parametrize(
    ("gateway_id", "after_s", "takes_over"), [(ELSEWHERE, 1800, True), (ELSEWHERE, 1799, False), (HERE, 1800, False)]
)
async def test_the_name_of_another_gateways_session_is_free_once_its_time_is_over(
    store: Store,
    gateway_id: GatewayId,
    after_s: float,
    takes_over: bool,  # noqa: FBT001
) -> None:
    old = new_session(kernel_id=new_kernel_id(), generation=4, news=SessionNews.CREATED, version=5, runs=9)
    at = NOW + timedelta(seconds=after_s)
    new = new_session(gateway_id=gateway_id, created_at=at, last_used_at=at, idle_timeout_s=5.0, max_lifetime_s=6.0)
    await store.add_session(old)
    assert await store.add_session(new) == (None if takes_over else old)
    assert await all_sessions(store) == [new if takes_over else old]


def with_kernel(session: Session, changed: Session) -> Session:
    return replace(
        session, kernel_id=changed.kernel_id, generation=changed.generation, news=changed.news, version=changed.version
    )


async def test_an_update_writes_the_kernel_and_the_news_of_it(store: Store) -> None:
    session = new_session(runs=2, usage=Usage(1.0, 2.0, 3), jupyter=(NOTEBOOK,), jupyter_version=3)
    await store.add_session(session)
    changed = after_a_run(session)
    await store.update_session(changed)
    assert await all_sessions(store) == [with_kernel(session, changed)]


@pytest.mark.parametrize("version", [6, 7])
async def test_an_update_that_is_not_newer_changes_nothing(store: Store, version: int) -> None:
    session = new_session(kernel_id=new_kernel_id(), version=7)
    await store.add_session(session)
    await store.update_session(replace(after_a_run(session), version=version))
    assert await all_sessions(store) == [session]


async def test_a_renewal_writes_the_time_outs_and_the_time_whatever_its_version(store: Store) -> None:
    session = new_session(kernel_id=new_kernel_id(), version=7, runs=2, usage=Usage(1.0, 2.0, 3))
    await store.add_session(session)
    await store.renew_session(replace(after_a_run(session), version=0))
    usage = replace(session.usage, memory_peak_bytes=after_a_run(session).usage.memory_peak_bytes)
    renewed = replace(session, last_used_at=LATER, idle_timeout_s=1.0, max_lifetime_s=2.0, usage=usage)
    assert await all_sessions(store) == [replace(renewed, jupyter=(CONSOLE,), jupyter_version=1)]


async def test_a_renewal_writes_what_jupyter_calls_it_if_that_is_newer(store: Store) -> None:
    session = new_session(jupyter=(NOTEBOOK,), jupyter_version=7)
    await store.add_session(session)
    for version in (6, 7):
        await store.renew_session(replace(session, jupyter=(CONSOLE,), jupyter_version=version))
        await store.renew_session(replace(session, jupyter=(), jupyter_version=version))
        assert await all_sessions(store) == [session]
    several = (NOTEBOOK, replace(CONSOLE, id=JupyterSessionId("k"), moves=3))
    for jupyter, version in (((CONSOLE,), 8), (several, 9), ((), 11), ((replace(NOTEBOOK, moves=1),), 12)):
        changed = replace(session, jupyter=jupyter, jupyter_version=version)
        await store.renew_session(changed)
        assert await all_sessions(store) == [changed]


@pytest.mark.parametrize("by_run", [True, False])
async def test_when_a_session_was_last_used_never_goes_back(store: Store, by_run: bool) -> None:  # noqa: FBT001
    run, session = new_run(), new_session(last_used_at=LATER)
    await store.add_run(run)
    await store.add_session(session)
    earlier = replace(session, last_used_at=NOW)
    if by_run:
        await store.finish_run(ok(run), Batch(), NOW, earlier)
    else:
        await store.renew_session(earlier)
    assert await all_sessions(store) == [session]
    expiry = LATER + timedelta(seconds=session.idle_timeout_s)
    too_early = new_session(gateway_id=ELSEWHERE, created_at=expiry - timedelta(microseconds=1))
    assert await store.add_session(too_early) == session
    assert await store.add_session(replace(too_early, created_at=expiry)) is None


async def test_the_cpu_time_and_the_memory_of_a_session_never_go_back(store: Store) -> None:
    run, session = new_run(), new_session(usage=Usage(1.0, 5.0, 300))
    await store.add_run(run)
    await store.add_session(session)
    await store.renew_session(replace(session, usage=Usage(9.0, 7.0, 200)))
    assert (await all_sessions(store))[0].usage == Usage(1.0, 7.0, 300)
    await store.finish_run(ok(run), Batch(), NOW, replace(session, usage=Usage(2.0, 6.0, 400)))
    assert (await all_sessions(store))[0].usage == Usage(2.0, 7.0, 400)
    await store.renew_session(replace(session, usage=Usage(0.0, 8.0, 0)))
    assert (await all_sessions(store))[0].usage == Usage(2.0, 8.0, 400)


@pytest.mark.parametrize("version", [6, 7])
async def test_the_end_of_a_run_leaves_a_kernel_that_is_newer_but_counts_all_the_same(
    store: Store, version: int
) -> None:
    run, session = new_run(), new_session(kernel_id=new_kernel_id(), generation=3, version=7)
    await store.add_run(run)
    await store.add_session(session)
    changed = replace(after_a_run(session), version=version)
    await store.finish_run(ok(run), Batch(), NOW, changed)
    assert await all_sessions(store) == [
        replace(session, last_used_at=changed.last_used_at, runs=changed.runs, usage=changed.usage)
    ]


async def test_two_sessions_may_name_one_kernel(store: Store) -> None:
    kernel_id = new_kernel_id()
    stale = new_session(kernel_id=kernel_id)
    young = new_session(session_id=SessionId("young"), created_at=LATER)
    await store.add_session(stale)
    await store.add_session(young)
    changed = replace(young, kernel_id=kernel_id, version=1)
    await store.update_session(changed)
    assert await all_sessions(store) == [stale, changed]


async def test_the_largest_numbers_are_kept(store: Store) -> None:
    run, session = new_run(), new_session()
    usage = Usage(float(1 << 53), float(1 << 53), (1 << 53) - 1)  # as `sessions.kernels.outcomes` lets through
    await store.add_run(run)
    await store.add_session(session)
    changed = replace(session, generation=(1 << 31) - 1, version=1 << 40, usage=usage)
    await store.finish_run(ok(run, usage=usage, execution_count=(1 << 31) - 1), Batch(), NOW, changed)
    assert await all_sessions(store) == [changed]
    record = await store.get_run(run.run_id)
    assert record is not None
    assert record.result == ok(run, usage=usage, execution_count=(1 << 31) - 1)


async def test_the_end_of_a_run_leaves_out_only_the_time_outs_and_jupyters_part(store: Store) -> None:
    run, session = new_run(), new_session(jupyter=(NOTEBOOK,), jupyter_version=3)
    await store.add_run(run)
    await store.add_session(session)
    changed = after_a_run(session)
    await store.finish_run(ok(run), Batch(), NOW, changed)
    assert await all_sessions(store) == [
        replace(
            changed,
            idle_timeout_s=session.idle_timeout_s,
            max_lifetime_s=session.max_lifetime_s,
            jupyter=(NOTEBOOK,),
            jupyter_version=3,
        )
    ]


async def test_an_end_that_comes_a_second_time_does_nothing_to_the_session(store: Store) -> None:
    run, session = new_run(), new_session()
    await store.add_run(run)
    await store.add_session(session)
    await store.finish_run(ok(run), Batch(), NOW)
    await store.finish_run(ok(run), Batch(), NOW, after_a_run(session))
    assert await all_sessions(store) == [session]


@pytest.mark.parametrize("how", ["update", "renewal", "run"])
async def test_what_has_come_into_a_sessions_place_is_left_alone(store: Store, how: str) -> None:
    run, gone = new_run(), new_session()
    await store.add_run(run)
    for another in (new_session(created_at=LATER), new_session(gateway_id=ELSEWHERE)):
        await store.add_session(another)
        match how:
            case "update":
                await store.update_session(after_a_run(gone))
            case "renewal":
                await store.renew_session(after_a_run(gone))
            case _:
                await store.finish_run(ok(run), Batch(), NOW, after_a_run(gone))
        assert await all_sessions(store) == [another]
        await store.remove_session(another)


@pytest.mark.parametrize(
    ("changes", "expires_after_s"),
    [({"idle_timeout_s": 60.0}, 67), ({"idle_timeout_s": 60.0, "max_lifetime_s": 50.0}, 50), ({}, 1807)],
)
@pytest.mark.parametrize("by_run", [True, False])
async def test_a_session_that_is_used_keeps_its_name_for_longer(
    store: Store,
    by_run: bool,  # noqa: FBT001
    changes: dict[str, float],
    expires_after_s: float,
) -> None:
    run, session = new_run(), new_session()
    await store.add_run(run)
    await store.add_session(session)
    used = replace(session, **changes, last_used_at=LATER)
    if by_run:
        await store.renew_session(replace(session, **changes))
        await store.finish_run(ok(run), Batch(), NOW, replace(used, idle_timeout_s=1.0))
    else:
        await store.renew_session(used)
    expiry = NOW + timedelta(seconds=expires_after_s)
    too_early = new_session(gateway_id=ELSEWHERE, created_at=expiry - timedelta(microseconds=1))
    assert await store.add_session(too_early) == used
    assert await store.add_session(replace(too_early, created_at=expiry)) is None


async def test_a_removed_session_is_forgotten_and_its_runs_stay(store: Store) -> None:
    run, session, other = (
        new_run(session_id=SessionId("notebook")),
        new_session(),
        new_session(session_id=SessionId("x")),
    )
    await store.add_run(run)
    await store.add_session(session)
    await store.add_session(other)
    for _ in range(2):
        await store.remove_session(session)
    await store.update_session(after_a_run(session))
    await store.renew_session(session)
    assert await all_sessions(store) == [other]
    assert await store.get_run(run.run_id) is not None
