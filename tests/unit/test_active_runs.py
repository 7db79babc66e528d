"""Following a run, and waiting for its end: from the gateway that has it, or from the store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from doubles import until
from workbench import Bench, Kernel, S

from sessions.errors import Conflict, EndNotStored, Gone, NotFound
from sessions.model import (
    ANONYMOUS,
    Batch,
    Event,
    EventType,
    GatewayId,
    Result,
    Run,
    RunId,
    RunRecord,
    RunStatus,
    TenantId,
)


class Follower:
    """Somebody who follows; checks that no event is seen that the store has not, and that none is missing."""

    def __init__(self, bench: Bench, run_id: RunId, after: int = 0) -> None:
        self.events: list[Event] = []
        self._bench = bench
        self._run_id = run_id
        self._after = after
        self.task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        async for events in self._bench.service.follow(self._run_id, self._after):
            for event in events:
                assert self._bench.stored(self._run_id).events[event.seq] == event
            self.events += events
            assert [event.seq for event in self.events] == [*range(self._after + 1, self.events[-1].seq + 1)]

    @property
    def text(self) -> str:
        return "".join(event.fields["text"] for event in self.events if event.type is EventType.STDOUT)

    async def end(self) -> list[EventType]:
        async with asyncio.timeout(5):
            await self.task
        return [event.type for event in self.events]


async def begun(bench: Bench) -> tuple[RunId, Kernel]:
    run_id = await bench.record("work", session_id=S)
    return run_id, await bench.sent("work")


async def test_events_come_while_the_run_goes_on_up_to_its_end(bench: Bench) -> None:
    run_id, kernel = await begun(bench)
    follower = Follower(bench, run_id)
    for number in range(3):
        kernel.print(str(number))
        await until(lambda number=number: follower.text.endswith(str(number)))  # type: ignore[misc]
    kernel.end("3")
    types = await follower.end()
    assert follower.text == "0123"
    assert (types[0], types[-1], types.count(EventType.END)) == (EventType.STARTED, EventType.END, 1)


async def test_whoever_comes_in_the_middle_gets_what_was_before_and_what_comes(bench: Bench) -> None:
    run_id, kernel = await begun(bench)
    kernel.print("before ")
    await until(lambda: bench.text(run_id) == "before ")
    late, latest = Follower(bench, run_id), Follower(bench, run_id, after=2)
    await until(lambda: late.text == "before ")
    kernel.end("after")
    await asyncio.gather(late.task, latest.task)
    assert (late.text, latest.text) == ("before after", "after")


async def test_after_the_end_all_of_it_is_there(bench: Bench) -> None:
    result = await bench.serve("work", "1")
    assert await Follower(bench, result.run_id).end() == [EventType.STARTED, EventType.STDOUT, EventType.END]
    assert await Follower(bench, result.run_id, after=2).end() == [EventType.END]
    assert await Follower(bench, result.run_id, after=3).end() == []
    assert await Follower(bench, result.run_id, after=99).end() == []


async def test_whoever_falls_behind_gets_it_all_from_the_store(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sessions.runs.feed._KEPT_BYTES", 10)
    run_id, kernel = await begun(bench)
    follow = bench.service.follow(run_id, 0)
    kernel.print("0")
    events = [*await anext(follow)]
    for number in range(1, 8):
        kernel.print(str(number) * 8)
        await until(lambda number=number: str(number) in bench.text(run_id))  # type: ignore[misc]
    kernel.end()
    await bench.service.result(run_id)
    events += [event async for page in follow for event in page]
    assert [event.seq for event in events] == [*range(1, len(events) + 1)]
    assert events[-1].type is EventType.END


async def test_a_run_of_another_gateway_is_read_from_the_store_until_it_ends(bench: Bench) -> None:
    run_id, run = await foreign(bench)
    follower = Follower(bench, run_id)
    waiting = asyncio.ensure_future(bench.service.result(run_id))
    await bench.store.append(run_id, Batch((Event(1, EventType.STARTED, {}),)))
    await until(lambda: len(follower.events) == 1)
    assert not waiting.done()
    await bench.store.finish_run(run, Batch((Event(2, EventType.END, {"status": "ok"}),)), bench.clock.now())
    assert await follower.end() == [EventType.STARTED, EventType.END]
    assert await waiting == run
    await bench.service.cancel(ANONYMOUS, run_id)  # has ended: nothing to do


async def test_a_run_of_another_gateway_can_only_be_stopped_there(bench: Bench) -> None:
    run_id, _ = await foreign(bench)
    for ask in (bench.service.cancel, bench.service.interrupt):
        with pytest.raises(Conflict, match="another gateway"):
            await ask(ANONYMOUS, run_id)
        with pytest.raises(NotFound):
            await ask(TenantId("t"), run_id)


async def foreign(bench: Bench) -> tuple[RunId, Result]:
    result = await bench.serve("work")
    run_id = RunId("00000000-0000-4000-8000-000000000001")
    await bench.store.add_run(replace(bench.stored().run, run_id=run_id, gateway_id=GatewayId("h")))
    return run_id, replace(result, run_id=run_id)


async def test_an_unknown_run_is_not_found_and_one_that_was_removed_is_gone(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await anext(bench.service.follow(RunId("?"), 0))
    with pytest.raises(NotFound):
        await bench.service.result(RunId("?"))
    result = await bench.serve("work")
    bench.stored().expire(bench.clock.now())
    with pytest.raises(Gone):
        await bench.service.result(result.run_id)
    with pytest.raises(Gone):
        await bench.service.get_run(ANONYMOUS, result.run_id)


@pytest.mark.parametrize("after", [0, 2, 99])
async def test_a_stop_ends_the_following_without_an_end_of_the_run(bench: Bench, after: int) -> None:
    run_id, kernel = await begun(bench)
    kernel.print("1")
    await until(lambda: bench.text(run_id) == "1")
    follower = Follower(bench, run_id, after)
    await until(lambda: len(follower.events) == max(0, 2 - after))
    await asyncio.sleep(0.02)
    await bench.service.close()
    assert EventType.END not in await follower.end()


@pytest.mark.parametrize("session_id", [None, S])
async def test_a_stop_tells_who_waits_for_an_answer_where_to_find_it(bench: Bench, session_id: object) -> None:
    running = bench.begin("work", session_id=session_id)
    await bench.sent("work")
    await bench.service.close()
    with pytest.raises(EndNotStored, match=f"GET /runs/{bench.stored().run.run_id}"):
        await running


async def test_whoever_follows_a_run_that_no_kernel_takes_sees_an_end_that_says_so(bench: Bench) -> None:
    running = bench.begin("work")
    kernel = await bench.sent("work")
    follower = Follower(bench, bench.stored().run.run_id)
    await asyncio.sleep(0.02)
    kernel.reject()
    for _ in range(2):
        (await bench.sent("work")).reject()
    assert (await follower.end())[-1] is EventType.END
    assert follower.events[-1].fields["status"] == "kernel_died"
    assert "was not run" in str((await running).error)


async def test_what_has_come_so_far_is_the_answer_of_a_run_that_lives(bench: Bench) -> None:
    run_id, kernel = await begun(bench)
    kernel.print("so far")
    record = await bench.service.get_run(ANONYMOUS, run_id)
    assert record.result is not None
    assert (record.status, record.result.status, record.result.output) == (
        RunStatus.RUNNING,
        RunStatus.RUNNING,
        "so far",
    )
    with pytest.raises(NotFound):
        await bench.service.get_run(TenantId("t"), run_id)
    kernel.end()
    await bench.service.result(run_id)


async def test_a_stop_ends_the_following_of_a_run_whose_end_cannot_be_stored(bench: Bench) -> None:
    await begun(bench)
    waiting = await bench.record("second", session_id=S)
    follower = Follower(bench, waiting)
    await asyncio.sleep(0.02)
    bench.store.is_reachable = False
    await bench.service.cancel(ANONYMOUS, waiting)
    await asyncio.sleep(0.02)
    closing = asyncio.ensure_future(bench.service.close())
    await asyncio.sleep(0.02)
    bench.store.is_reachable = True
    await closing
    assert await follower.end() == []
    assert bench.stored(waiting).status is RunStatus.QUEUED


async def test_where_the_store_refuses_what_a_run_said_its_end_is_seen_all_the_same_then_and_later(
    bench: Bench,
) -> None:
    append, finish_run = bench.store.append, bench.store.finish_run

    def check(batch: Batch) -> None:
        if any(event.type is EventType.STDOUT for event in batch.events):
            raise ValueError("a value that no column takes")

    async def choosy_append(run_id: RunId, batch: Batch) -> None:
        check(batch)
        await append(run_id, batch)

    async def choosy_finish_run(result: Result, batch: Batch, *rest: Any) -> None:
        check(batch)
        await finish_run(result, batch, *rest)

    bench.store.append = choosy_append  # type: ignore[method-assign]
    bench.store.finish_run = choosy_finish_run  # type: ignore[method-assign]
    run_id, kernel = await begun(bench)
    live = Follower(bench, run_id)
    kernel.end("1")
    assert await live.end() == [EventType.STARTED, EventType.END]
    assert await Follower(bench, run_id).end() == [EventType.STARTED, EventType.END]
    result = await bench.service.result(run_id)
    assert (result.status, result.truncated) == (RunStatus.OK, True)


async def test_whoever_asks_after_a_run_whose_end_was_not_stored_is_told_so_at_once(bench: Bench) -> None:
    async def refuse(*_: object) -> None:
        raise ValueError("a value that no column takes")

    bench.store.finish_run = refuse  # type: ignore[method-assign]
    run_id, kernel = await begun(bench)
    kernel.end()
    for _ in range(2):
        async with asyncio.timeout(30):
            with pytest.raises(EndNotStored, match="could not be stored"):
                await bench.service.result(run_id)


# --- a run of a gateway that is gone ----------------------------------------------------------------------------------


async def abandoned(bench: Bench, **changes: Any) -> Run:
    """A run of another gateway, which nobody goes on with."""
    await bench.serve("work", idempotency_key="key", timeout_s=0.1)
    run = replace(
        bench.stored().run, run_id=RunId("00000000-0000-4000-8000-000000000001"), gateway_id=GatewayId("h"), **changes
    )
    bench.store.runs.clear()
    await bench.store.add_run(run)
    return run


@pytest.mark.parametrize("changes", [{}, {"kernel_id": None, "started_at": None}])
async def test_whoever_repeats_the_request_of_a_run_whose_gateway_is_gone_is_told_so_in_time(
    bench: Bench, changes: dict[str, Any]
) -> None:
    run = await abandoned(bench, **changes)
    for _ in range(2):
        async with asyncio.timeout(30):
            with pytest.raises(EndNotStored, match=f"another gateway.* GET /runs/{run.run_id}"):
                await bench.begin("work", idempotency_key="key", timeout_s=0.1)


async def test_all_who_wait_for_a_run_of_another_gateway_ask_the_store_together(bench: Bench) -> None:
    run_id, run = await foreign(bench)
    get_run = bench.store.get_run
    asked = 0

    async def counted(run_id: RunId) -> RunRecord | None:
        nonlocal asked
        asked += 1
        return await get_run(run_id)

    bench.store.get_run = counted  # type: ignore[method-assign]
    waiting = [asyncio.ensure_future(bench.service.result(run_id)) for _ in range(20)]
    await asyncio.sleep(0.05)
    waiting.pop().cancel()
    assert 0 < asked <= 10
    await bench.store.finish_run(run, Batch((Event(1, EventType.END, {"status": "ok"}),)), bench.clock.now())
    assert await asyncio.gather(*waiting) == [run] * 19


async def test_nobody_asks_the_store_for_those_who_have_left(bench: Bench) -> None:
    run_id, _ = await foreign(bench)
    waiting = asyncio.ensure_future(bench.service.result(run_id))
    await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert bench.service._runs._polls == {}


async def test_a_stop_ends_the_waiting_for_a_run_of_another_gateway(bench: Bench) -> None:
    run_id, _ = await foreign(bench)
    waiting = asyncio.ensure_future(bench.service.result(run_id))
    await asyncio.sleep(0.02)
    await bench.service.close()
    with pytest.raises(EndNotStored, match=f"GET /runs/{run_id}"):
        await waiting
