"""A session whose database, or whose engine, is out of reach when it needs them."""

from __future__ import annotations

import asyncio

import pytest
from doubles import until
from workbench import Bench, S, news, unavailable

from sessions.errors import StoreUnavailable
from sessions.model import ANONYMOUS, RunStatus


async def test_without_a_database_no_session_is_made_and_no_sandbox_used_up(bench: Bench) -> None:
    (warm,) = bench.engine.sandboxes
    bench.store.is_reachable = False
    with pytest.raises(StoreUnavailable):
        await bench.begin("x", session_id=S)
    with pytest.raises(StoreUnavailable):
        await bench.create()
    assert bench.service.list_sessions(ANONYMOUS) == []
    bench.store.is_reachable = True
    assert news(await bench.serve("x", session_id=S)) == (True, False)
    assert bench.kernel_of().kernel_id == warm


@pytest.mark.parametrize("step", ["add_session", "update_session", "add_run"])
async def test_an_outage_at_any_step_before_the_run_is_recorded_leaves_it_unrun(bench: Bench, step: str) -> None:
    with unavailable(bench.store, step), pytest.raises(StoreUnavailable):
        await bench.begin("x", session_id=S)
    assert (bench.store.runs, bench.times_sent("x")) == ({}, 0)
    assert news(await bench.serve("x", session_id=S)) == (True, False)


async def test_a_waiting_run_is_not_sent_before_it_is_recorded_where_it_goes(bench: Bench) -> None:
    running = bench.begin("first", session_id=S)
    kernel = await bench.sent("first")
    waiting = bench.begin("second", session_id=S)
    await until(lambda: len(bench.store.runs) == 2)
    with unavailable(bench.store, "start_run"):
        kernel.end()
        await running
        await asyncio.sleep(0.05)
        assert bench.times_sent("second") == 0
    (await bench.sent("second")).end()
    assert (await waiting).status is RunStatus.OK


async def test_an_end_that_cannot_be_stored_holds_up_the_next_run_and_nothing_is_lost(bench: Bench) -> None:
    first = await bench.record("first", session_id=S)
    second = await bench.record("second", session_id=S)
    kernel = await bench.sent("first")
    bench.store.is_reachable = False
    kernel.end("1")
    await asyncio.sleep(0.05)
    assert bench.times_sent("second") == 0
    bench.store.is_reachable = True
    (await bench.sent("second")).end("2")
    assert ((await bench.service.result(first)).output, (await bench.service.result(second)).output) == ("1", "2")
    assert bench.session().runs == 2


async def test_a_session_that_cannot_be_deleted_goes_on(bench: Bench) -> None:
    await bench.serve("x = 1", session_id=S)
    bench.store.is_reachable = False
    with pytest.raises(StoreUnavailable):
        await bench.service.delete_session(ANONYMOUS, S)
    bench.store.is_reachable = True
    assert news(await bench.serve("x", session_id=S)) == (False, False)


@pytest.mark.timeouts(queued_patience_s=0.3)
async def test_a_run_for_which_no_kernel_comes_up_ends_and_says_that_it_was_not_run(bench: Bench) -> None:
    first = bench.begin("first", session_id=S)
    kernel = await bench.sent("first")
    second = bench.begin("second", session_id=S)
    await until(lambda: len(bench.store.runs) == 2 and bench.service.readiness().warm == 1)
    bench.engine.launches_fail = 10**6
    for kernel_id in list(bench.engine.sandboxes):
        bench.engine.end_sandbox(kernel_id)
    del kernel
    assert (await first).status is RunStatus.KERNEL_DIED
    result = await second
    assert result.status is RunStatus.KERNEL_DIED
    assert "was not run" in str(result.error)
    assert bench.times_sent("second") == 0
    bench.engine.launches_fail = 0


async def test_an_end_that_no_store_takes_does_not_run_the_code_again(bench: Bench) -> None:
    finish_run = bench.store.finish_run

    async def refuse(*_: object) -> None:
        raise ValueError("a value that no column takes")

    bench.store.finish_run = refuse  # type: ignore[method-assign]
    first = await bench.record("first", session_id=S)
    (await bench.sent("first")).end()
    await asyncio.sleep(0.05)
    bench.store.finish_run = finish_run  # type: ignore[method-assign]
    assert (await bench.serve("second", session_id=S)).status is RunStatus.OK
    assert bench.times_sent("first") == 1
    assert not bench.has_ended(first)
