"""What every Store promises of the files, paths and variables that a run is given."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from run_records import NOW, new_kernel_id, new_run, ok

from sessions.inputs import RunInputs
from sessions.model import Batch, Run
from sessions.ports import Store

FILES = {"a/é \ud7ff.csv": b"1,2\n\x00\xff", "empty": b"", "large": bytes(range(256)) * 4096}
GIVEN = [
    RunInputs(FILES, ("a", "b/c"), {"KEY": "s3cret\n"}),
    RunInputs({"a": b"b"}),
    RunInputs(fetch=("a",)),
    RunInputs(env={"KEY": ""}),
]


async def taken_over(store: Store, run: Run) -> RunInputs | None:
    (record,) = [one for one in await store.unfinished_runs(run.gateway_id) if one.run.run_id == run.run_id]
    return record.run.inputs


@pytest.mark.parametrize("inputs", GIVEN)
async def test_the_next_gateway_gets_what_an_unfinished_run_was_given(store: Store, inputs: RunInputs) -> None:
    queued = new_run(inputs=inputs)
    sent = new_run(inputs=inputs, kernel_id=new_kernel_id(), started_at=NOW, idempotency_key="key")
    plain = new_run()
    for run in (queued, sent, plain):
        assert await store.add_run(run) is None
        assert await store.add_run(run) is None
    assert [await taken_over(store, run) for run in (queued, sent, plain)] == [inputs, inputs, None]
    await store.start_run(queued.run_id, new_kernel_id(), NOW)
    assert await taken_over(store, queued) == inputs


async def test_nobody_else_gets_it(store: Store) -> None:
    run = new_run(inputs=GIVEN[0], idempotency_key="key")
    await store.add_run(run)
    for record in (await store.get_run(run.run_id), await store.find_run(run.tenant, "key")):
        assert record is not None
        assert record.run == replace(run, inputs=None)
    assert await store.run_bytes(run.run_id) < 1000


async def test_a_run_that_ends_or_expires_lets_it_go(store: Store) -> None:
    ended, old = (new_run(inputs=GIVEN[0]) for _ in range(2))
    for run in (ended, old):
        await store.add_run(run)
    await store.finish_run(ok(ended), Batch(), NOW)
    assert await store.remove_expired(NOW + timedelta(hours=1)) == 2
    assert await store.unfinished_runs(ended.gateway_id) == []
