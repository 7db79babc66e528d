"""Runs taken on while the database, or the gateway itself, goes away: refused and not run, or recorded and run once."""

from __future__ import annotations

import asyncio

import pytest
from doubles import until
from workbench import Benches, S, answers_lost, come_back, crash, ended, held, late, unavailable

from sessions.errors import StoreUnavailable, TooManyRequests
from sessions.model import RunId, RunStatus, SessionId, TenantId


@pytest.mark.parametrize("session_id", [None, S])
async def test_a_refused_run_that_was_recorded_all_the_same_is_run_by_no_later_gateway(
    benches: Benches, session_id: SessionId | None
) -> None:
    await benches[0].serve("before", session_id=session_id)
    with answers_lost(benches[0].store, "add_run"), pytest.raises(StoreUnavailable):
        await benches[0].begin("x", session_id=session_id)
    await until(lambda: "0 being withdrawn" in repr(benches[0].service._admission))
    kernels = [benches[0].kernel_of()] if session_id is not None else []
    bench = await crash(benches)
    come_back(bench, *kernels)
    assert (await bench.serve("y", session_id=session_id)).status is RunStatus.OK
    assert bench.times_sent("x") == 0
    assert [stored.run.code for stored in bench.store.runs.values()] == ["before", "y"]


async def test_a_key_is_free_although_its_refused_run_is_on_record_and_cannot_be_removed_yet(benches: Benches) -> None:
    (bench,) = benches
    with late(bench.store, "add_run") as addition, pytest.raises(StoreUnavailable):
        await bench.begin("x", idempotency_key="key")
    await until(lambda: "0 being withdrawn" in repr(bench.service._admission))
    await addition.arrives()
    with unavailable(bench.store, "withdraw_run"), pytest.raises(StoreUnavailable, match="nothing was run"):
        await bench.begin("x", idempotency_key="key")
    result = await bench.serve("x", "1", idempotency_key="key")
    assert (result.output, bench.times_sent("x"), [*bench.store.runs]) == ("1", 1, [result.run_id])


async def test_a_kernel_that_may_be_on_record_as_one_runs_is_not_given_to_another(benches: Benches) -> None:
    (bench,) = benches
    with answers_lost(bench.store, "add_run"), unavailable(bench.store, "withdraw_run"):  # noqa: SIM117
        with pytest.raises(StoreUnavailable):
            await bench.begin("x", tenant=TenantId("alice"))
    (refused,) = bench.store.runs.values()
    run_id = await bench.record("y", tenant=TenantId("bob"))
    kernel = await bench.sent("y")
    assert kernel.kernel_id != refused.run.kernel_id
    bench = await crash(benches)
    come_back(bench, kernel)
    kernel.end("1")
    assert (await ended(bench, run_id)).output == "1"


async def test_a_kernel_that_a_run_may_have_moved_to_on_record_is_not_given_to_another(benches: Benches) -> None:
    (bench,) = benches
    running = bench.begin("x")
    first = await bench.sent("x")
    await until(lambda: bench.service.readiness().warm == 1)
    (second_id,) = {*bench.engine.sandboxes} - {first.kernel_id}
    with answers_lost(bench.store, "start_run"):
        first.reject()
        with pytest.raises(StoreUnavailable):
            await running
    running = bench.begin("y")
    kernel = await bench.sent("y")
    assert kernel.kernel_id not in (first.kernel_id, second_id)
    kernel.end()
    await running


# --- while the gateway stops ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session_id", [None, S])
@pytest.mark.parametrize(
    "step",
    [
        pytest.param("drain", marks=pytest.mark.timeouts(stop_grace_s=0.0)),
        pytest.param("close", marks=pytest.mark.timeouts(stop_grace_s=5.0)),
    ],
)
async def test_a_run_that_is_just_being_recorded_is_waited_for_and_left_to_the_next_gateway(
    benches: Benches, step: str, session_id: SessionId | None
) -> None:
    first = benches[0]
    with held(first.store, "add_run") as adding:
        beginning = asyncio.ensure_future(first.service.begin(first.request("x", session_id=session_id)))
        await until(lambda: adding.count == 1)
        stopping = asyncio.ensure_future(first.service.drain(0.5) if step == "drain" else first.service.close())
        await asyncio.sleep(0.02)
        assert not stopping.done()
    run_id: RunId = await beginning
    await stopping
    if step == "drain":
        await first.service.close()
    benches.append(bench := await first.successor())
    bench.engine.dial(bench.stored(run_id).run.kernel_id)  # type: ignore[arg-type]
    (await bench.sent("x")).end("1")
    assert (await ended(bench, run_id)).output == "1"
    assert bench.times_sent("x") == 1


@pytest.mark.parametrize("session_id", [None, S])
async def test_a_run_that_is_not_recorded_in_time_leaves_nothing_behind(
    benches: Benches, session_id: SessionId | None
) -> None:
    first = benches[0]
    with held(first.store, "add_run") as adding:
        beginning = first.begin("x", session_id=session_id)
        await until(lambda: adding.count == 1)
        await first.service.close()
        await asyncio.wait([beginning])
        assert first.tasks() == set()
    benches.append(await first.successor())
    assert first.store.runs == {}


async def test_a_refused_run_that_is_recorded_late_is_removed_when_the_gateway_stops(benches: Benches) -> None:
    """Nothing was run, its client was told; so the next gateway must not find it."""
    (first,) = benches
    with late(first.store, "add_run") as addition, pytest.raises(StoreUnavailable):
        await first.begin("x")
    with unavailable(first.store, "withdraw_run"):
        await addition.arrives()
        await asyncio.sleep(0.02)
        assert len(first.store.runs) == 1
        stopping = asyncio.ensure_future(first.service.drain(5.0))
        await stopping
    await first.service.close()
    assert first.store.runs == {}
    benches.append(await first.successor())


# --- what may wait ----------------------------------------------------------------------------------------------------


async def test_one_tenants_code_and_data_may_take_so_much_and_anothers_as_much_again(
    benches: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.admission._MAX_SOURCE_BYTES", 1000)
    (bench,) = benches
    first = bench.begin("#" * 600, session_id=S)
    kernel = await bench.sent("#" * 600)
    second = bench.begin("x", session_id=S, variables={"data": "y" * 600})
    await until(lambda: len(bench.store.runs) == 2)
    with pytest.raises(TooManyRequests, match="code and data"):
        await bench.begin("x", session_id=S)
    other = bench.begin("z", session_id=S, tenant=TenantId("bob"))
    (await bench.sent("z")).end()
    await other
    kernel.end()
    await first
    third = bench.begin("x", session_id=S)
    await until(lambda: len(bench.store.runs) == 4)
    for running in (second, third):
        running.cancel()
