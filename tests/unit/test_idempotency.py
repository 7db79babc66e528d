"""`Idempotency-Key`: what is asked twice is run once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from doubles import until
from workbench import Bench, S, held

from sessions.errors import Conflict, EngineUnavailable, Gone, SandboxLost, StoreUnavailable
from sessions.inputs import RunInputs
from sessions.model import RunRecord, RunStatus, SessionId, TenantId

KEY = "key"


@pytest.mark.parametrize("session_id", [None, S])
async def test_a_request_that_is_repeated_is_the_run_it_was(bench: Bench, session_id: SessionId | None) -> None:
    first = await bench.serve("x", "1", session_id=session_id, idempotency_key=KEY)
    again = await bench.begin("x", session_id=session_id, idempotency_key=KEY)
    assert again == first
    assert bench.times_sent("x") == 1


@pytest.mark.parametrize("session_id", [None, S])
async def test_requests_that_come_at_once_follow_one_run(bench: Bench, session_id: SessionId | None) -> None:
    find_run = bench.store.find_run

    async def slow(tenant: TenantId, key: str) -> RunRecord | None:
        await asyncio.sleep(0.01)  # so that nobody finds what the others are about to add
        return await find_run(tenant, key)

    bench.store.find_run = slow  # type: ignore[method-assign]
    running = [bench.begin("x", session_id=session_id, idempotency_key=KEY) for _ in range(5)]
    (await bench.sent("x")).end("1")
    results = await asyncio.gather(*running)
    assert len({result.run_id for result in results}) == len(bench.store.runs) == 1
    assert bench.times_sent("x") == 1
    used = 0 if session_id is None else 1
    await until(lambda: bench.service._kernel_pool.working() == used)  # what was claimed in vain is back


async def test_of_requests_that_come_at_once_only_the_first_takes_a_kernel(bench: Bench) -> None:
    with held(bench.store, "add_run") as adding:
        beginning = [asyncio.ensure_future(bench.record("x", idempotency_key=KEY)) for _ in range(10)]
        await until(lambda: adding.count > 0 and bench.service.readiness().warm == 1)
        await asyncio.sleep(0.02)
        assert (adding.count, bench.service._kernel_pool.working(), len(bench.engine.specs)) == (1, 1, 2)
    assert len({*await asyncio.gather(*beginning)}) == len(bench.store.runs) == 1
    (await bench.sent("x")).end()


async def test_a_request_that_is_repeated_while_it_runs_waits_for_the_same_end(bench: Bench) -> None:
    first = bench.begin("x", session_id=S, idempotency_key=KEY)
    kernel = await bench.sent("x")
    first.cancel()  # the connection broke
    again = bench.begin("x", session_id=S, idempotency_key=KEY)
    await asyncio.sleep(0.02)
    assert not again.done()
    kernel.end("1")
    assert (await again).output == "1"


@pytest.mark.parametrize(
    "other", [{"code": "y"}, {"variables": {"v": 1}}, {"timeout_s": 5.0}, {"session_id": S}, {"language": "other"}]
)
async def test_another_request_under_the_same_key_is_a_conflict(bench: Bench, other: dict[str, object]) -> None:
    await bench.serve("x", idempotency_key=KEY)
    with pytest.raises(Conflict, match="another request"):
        await bench.begin(**{"code": "x", "idempotency_key": KEY, **other})  # type: ignore[arg-type]
    assert len(bench.store.runs) == 1
    assert bench.store.sessions == {}


async def test_a_key_is_a_tenants_own(bench: Bench) -> None:
    mine = await bench.serve("x", idempotency_key=KEY)
    theirs = await bench.serve("x", idempotency_key=KEY, tenant=TenantId("t"))
    assert mine.run_id != theirs.run_id


async def test_what_retention_has_removed_is_gone_and_not_run_again(bench: Bench) -> None:
    await bench.serve("x", idempotency_key=KEY)
    await bench.store.remove_expired(bench.clock.now() + timedelta(days=1))
    with pytest.raises(Gone):
        await bench.begin("x", idempotency_key=KEY)
    with pytest.raises(Conflict):
        await bench.begin("y", idempotency_key=KEY)
    assert bench.times_sent("x") == 1


async def test_who_wants_to_follow_by_the_key_of_a_run_that_was_removed_is_told_at_once(bench: Bench) -> None:
    await bench.serve("x", idempotency_key=KEY)
    bench.stored().expire(bench.clock.now())
    with pytest.raises(Gone):
        await bench.record("x", idempotency_key=KEY)  # before there is anything to follow


@pytest.mark.parametrize("session_id", [None, S])
async def test_a_request_that_could_not_be_taken_on_leaves_the_key_free(
    bench: Bench, session_id: SessionId | None
) -> None:
    bench.engine.launches_fail = 10**6
    for kernel_id in list(bench.engine.sandboxes):
        bench.engine.end_sandbox(kernel_id)
    with pytest.raises(EngineUnavailable):
        await bench.begin("x", session_id=session_id, idempotency_key=KEY)
    bench.engine.launches_fail = 0
    bench.store.is_reachable = False
    with pytest.raises(StoreUnavailable):
        await bench.begin("x", session_id=session_id, idempotency_key=KEY)
    bench.store.is_reachable = True
    await until(lambda: bench.service.readiness().warm == 1)
    assert (await bench.serve("x", session_id=session_id, idempotency_key=KEY)).status is RunStatus.OK


async def test_a_run_that_no_kernel_took_leaves_the_key_free(bench: Bench) -> None:
    running = bench.begin("x", idempotency_key=KEY)
    for _ in range(3):
        (await bench.sent("x")).reject()
    with pytest.raises(SandboxLost):
        await running
    await until(lambda: bench.store.runs == {})
    assert (await bench.serve("x", "1", idempotency_key=KEY)).output == "1"


async def test_a_key_is_known_to_the_next_gateway() -> None:
    bench = await Bench().start()
    first = bench.begin("x", session_id=S, idempotency_key=KEY)
    kernel = await bench.sent("x")
    bench.crash()
    await asyncio.wait([first])
    successor = await bench.successor()
    again = successor.begin("x", session_id=S, idempotency_key=KEY)
    bench.engine.dial(kernel.kernel_id)
    kernel.end("1")
    assert (await again).output == "1"
    assert bench.times_sent("x") == 1
    await successor.stop()


def test_the_digest_of_a_request_is_what_earlier_gateways_have_stored(bench: Bench) -> None:
    plain = bench.request("x", variables={"a": 1}, session_id=S)
    known = "74738eb01be5ccdb55bfe7207b1a94e70c8c5e90d7c6a8ab39c2cebbe9a065e9"
    assert plain.sha256().hex() == known
    given = [
        RunInputs({"a": b"1"}),
        RunInputs({"a": b"2"}),
        RunInputs({"b": b"1"}),
        RunInputs(fetch=("a",)),
        RunInputs(env={"A": "1"}),
        RunInputs(env={"A": "2"}),
    ]
    digests = {replace(plain, inputs=inputs).sha256().hex() for inputs in given}
    assert len({known, *digests}) == 1 + len(given)
    assert replace(plain, inputs=RunInputs({"a": b"1"})).sha256().hex() in digests
