"""The bag of tasks, the lock per key, and retrying."""

from __future__ import annotations

import asyncio
import gc
from itertools import islice

import pytest
from structlog.testing import capture_logs

from sessions.concurrency import BackgroundTasks, KeyedLock, growing_pauses, retry


async def test_what_a_background_task_raises_is_logged_with_its_owner() -> None:
    async def fails() -> None:
        raise ValueError("boom")

    tasks = BackgroundTasks("the tests")
    with capture_logs() as logs:
        tasks.spawn(fails())
        await tasks.wait()
        await asyncio.sleep(0)
    assert [(entry["event"], entry["owner"]) for entry in logs] == [("background_task_failed", "the tests")]
    assert len(tasks) == 0


async def test_waiting_ends_in_time_and_cancelling_ends_everything() -> None:
    tasks = BackgroundTasks("the tests")
    forever = tasks.spawn(asyncio.Event().wait())
    await tasks.wait(0.01)
    assert not forever.done()
    await tasks.cancel()
    assert forever.cancelled()
    assert len(tasks) == 0


async def test_shielded_work_goes_on_without_its_caller_and_raises_to_nobody_else() -> None:
    async def fails() -> None:
        raise ValueError("boom")

    tasks, go_on = BackgroundTasks("the tests"), asyncio.Event()
    caller = asyncio.ensure_future(tasks.shielded(go_on.wait()))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    assert (caller.cancelled(), len(tasks)) == (True, 1)
    go_on.set()
    await tasks.wait()
    with capture_logs() as logs, pytest.raises(ValueError, match="boom"):
        await tasks.shielded(fails())
    assert (logs, len(tasks)) == ([], 0)


async def test_a_keyed_lock_serves_one_key_in_order_and_other_keys_at_once() -> None:
    locks: KeyedLock[str] = KeyedLock()
    order: list[str] = []

    async def work(key: str, name: str) -> None:
        async with locks.hold(key):
            order.append(name)
            await asyncio.sleep(0.01)

    await asyncio.gather(work("a", "first"), work("a", "second"), work("b", "other"))
    assert order == ["first", "other", "second"]
    assert repr(locks) == "<KeyedLock 0 keys>"


async def test_retrying_ends_with_the_first_success_or_the_last_error() -> None:
    failures: list[Exception] = []
    attempts = iter([ValueError("one"), ValueError("two"), None])

    async def attempt() -> str:
        if (error := next(attempts)) is not None:
            raise error
        return "done"

    assert await retry(attempt, on=ValueError, pauses=growing_pauses(0.0, 0.0), on_failure=failures.append) == "done"
    assert [str(failure) for failure in failures] == ["one", "two"]
    attempts = iter([ValueError("one"), ValueError("last")])
    with pytest.raises(ValueError, match="last"):
        await retry(attempt, on=ValueError, pauses=iter([0.0]))


def test_pauses_double_up_to_the_longest() -> None:
    assert list(islice(growing_pauses(0.5, 2.0), 4)) == [0.5, 1.0, 2.0, 2.0]


async def test_what_fails_when_its_caller_has_gone_is_logged_and_not_left_to_the_collector(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks, may_fail = BackgroundTasks("a test"), asyncio.Event()

    async def fail() -> None:
        await may_fail.wait()
        raise ValueError("too late")

    caller = asyncio.ensure_future(tasks.shielded(fail()))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    with capture_logs() as logs:
        may_fail.set()
        await tasks.wait()
        await asyncio.sleep(0)
    assert [(line["event"], line["error"]) for line in logs] == [("failed_for_nobody", "ValueError('too late')")]
    gc.collect()
    assert "never retrieved" not in caplog.text
