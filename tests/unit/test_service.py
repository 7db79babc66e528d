"""One run from claim to committed answer, with an engine and a store in memory whose faults the test chooses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from doubles import MemoryEngine, RecordingLink, until

import sessions.conduct
import sessions.live_runs
import sessions.recording
import sessions.service
from gateway.clock import SystemClock
from kernel_image import protocol
from sessions.errors import Draining, EndNotStored, InvalidRequest, SandboxLost, StoreUnavailable, UnsupportedLanguage
from sessions.memory_store import MemoryStore
from sessions.model import (
    ANONYMOUS,
    Batch,
    Event,
    EventType,
    Fate,
    GatewayId,
    KernelId,
    Limits,
    Result,
    Run,
    RunId,
    RunRecord,
    RunRequest,
    RunStatus,
    SessionLimits,
)
from sessions.pool import PoolSettings
from sessions.service import Service

GATEWAY = GatewayId("g")
SOON_S = 0.05


class RefusingStore(MemoryStore):
    """A store that does not take an end with events, as a database does whose rules some event breaks."""

    async def finish_run(self, result: Result, batch: Batch, finished_at: datetime) -> None:
        if batch.events:
            raise ValueError("a value that no column takes")
        await super().finish_run(result, batch, finished_at)


class Bench:
    """A service with one warm kernel, and the hands of the supervisor at the other end."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.engine = MemoryEngine()
        self.service = Service(
            store=self.store,
            provisioner=self.engine,
            switchboard=self.engine,
            gateway_id=GATEWAY,
            limits=Limits(),
            pool=PoolSettings(1, 2, refill_pause_s=0.25),
            languages={"python": "python3", "other": "another"},
            preload=(),
            session_limits=SessionLimits(),
            credential_of=lambda kernel_id: f"secret of {kernel_id}",
            clock=SystemClock(),
        )

    async def start(self) -> Bench:
        await self.service.start()
        await until(lambda: self.service.readiness().ready)
        return self

    async def stop(self) -> None:
        self.store.is_reachable = True
        await self.service.close()
        assert self.engine.sandboxes == {}

    def begin(self, code: str = "print(1)", *, timeout_s: float = 10.0, **fields: Any) -> asyncio.Future[Result]:
        fields = {"language": "python", "variables": {}, **fields}
        request = RunRequest(tenant=ANONYMOUS, code=code, timeout_s=timeout_s, **fields)
        return asyncio.ensure_future(self.service.run(request))

    async def sent(self, requests: int = 1) -> Kernel:
        """The kernel that the run has been sent to."""
        async with asyncio.timeout(5):
            while True:
                for kernel_id, (_, link) in self.engine.dialled.items():
                    if len(link.binary) == requests:
                        return Kernel(self.engine, kernel_id, link)
                await asyncio.sleep(0.002)

    def stored(self) -> Any:
        (stored,) = self.store.runs.values()
        return stored


class Kernel:
    """A kernel that has been sent a run, and says of it what the test wants it to."""

    def __init__(self, engine: MemoryEngine, kernel_id: KernelId, link: RecordingLink) -> None:
        self.engine = engine
        self.kernel_id = kernel_id
        self.link = link
        self.msg_id = link.request_ids()[-1]

    def print(self, text: str) -> None:
        self.engine.publish(self.kernel_id, "stream", self.msg_id, {"name": "stdout", "text": text})

    def file(self, path: str, data: bytes) -> None:
        content = {"path": path, "bytes": len(data), "offset": 0}
        self.engine.publish(self.kernel_id, "artifact", self.msg_id, content, channel="artifact", buffers=(data,))

    def reply(self, status: str = "ok", **content: Any) -> None:
        fields = {"status": status, "execution_count": 1, **content}
        self.engine.publish(self.kernel_id, "execute_reply", self.msg_id, fields, channel="shell")

    def idle(self) -> None:
        self.engine.publish(self.kernel_id, "status", self.msg_id, {"execution_state": "idle"})

    def done(self, **fields: Any) -> None:
        self.engine.say(self.kernel_id, protocol.DONE, msg_id=self.msg_id, **fields)

    def died(self, cause: str, **fields: Any) -> None:
        self.engine.say(self.kernel_id, protocol.DIED, **{"msg_id": self.msg_id, "cause": cause, **fields})

    def end(self) -> None:
        self.reply()
        self.idle()
        self.done()


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    for name in ("_INTERRUPT_GRACE_S", "_KILL_GRACE_S", "_FILES_PATIENCE_S"):
        monkeypatch.setattr(sessions.conduct, name, SOON_S)
    monkeypatch.setattr(sessions.live_runs, "_COMMIT_PATIENCE_S", SOON_S)
    monkeypatch.setattr(sessions.recording, "_FIRST_RETRY_S", 0.01)
    bench = await Bench().start()
    yield bench
    await bench.stop()


async def test_an_answer_is_committed_before_it_is_given_and_the_kernel_is_used_once(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    assert bench.stored().status is RunStatus.RUNNING
    assert bench.stored().run.kernel_id == kernel.kernel_id
    kernel.print("1\n")
    kernel.end()
    result = await running
    assert (result.status, result.output) == (RunStatus.OK, "1\n")
    assert bench.stored().result == result
    assert [event.type for event in bench.stored().events.values()] == [
        EventType.STARTED,
        EventType.STDOUT,
        EventType.END,
    ]
    assert kernel.link.sent(protocol.ACK)[-1]["seq"] == bench.engine.seqs[kernel.kernel_id]
    assert kernel.kernel_id in bench.engine.sandboxes  # removing it, and starting the next, do not delay the answer
    assert len(bench.engine.specs) == 1
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)


async def test_beside_a_long_run_the_pool_is_filled_again(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    assert bench.service.readiness().warm == 0
    await until(lambda: bench.service.readiness().warm == 1)
    assert not running.done()
    kernel.end()
    await running


async def test_variables_travel_as_metadata_of_a_silent_request_before_the_code(bench: Bench) -> None:
    running = bench.begin("x", variables={"x": "'; import os"})
    kernel = await bench.sent(requests=2)
    requests = [protocol.decode_message(frame)[1] for frame in kernel.link.binary]
    first, second = (
        {"metadata": json.loads(parts[2]), "content": json.loads(parts[3])} for parts in (requests[0], requests[1])
    )
    assert first["content"]["silent"]
    assert "import os" not in first["content"]["code"]
    assert first["metadata"]["cellblock"]["variables"] == {"x": "'; import os"}
    assert (second["content"]["code"], second["content"]["silent"]) == ("x", False)
    kernel.end()
    assert (await running).status is RunStatus.OK


async def test_code_that_ended_in_time_is_no_timeout_however_long_its_files_take(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.conduct, "_FILES_PATIENCE_S", 10.0)
    running = bench.begin(timeout_s=0.2)
    kernel = await bench.sent()
    kernel.reply()
    kernel.idle()
    await asyncio.sleep(0.3)
    assert not kernel.link.sent(protocol.INTERRUPT)
    kernel.done()
    assert (await running).status is RunStatus.OK


async def test_files_that_never_come_are_left_out_and_said(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    kernel.print("1\n")
    kernel.reply()
    kernel.idle()
    result = await running
    assert (result.status, result.output, result.truncated) == (RunStatus.OK, "1\n", True)
    assert "[cellblock]" in result.stderr


async def test_a_death_in_time_is_no_timeout_however_long_its_files_take(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.conduct, "_FILES_PATIENCE_S", 10.0)
    running = bench.begin(timeout_s=0.2)
    kernel = await bench.sent()
    kernel.file("made.txt", b"x")  # the supervisor sends files only once the code has ended
    await asyncio.sleep(0.3)
    assert not kernel.link.sent(protocol.INTERRUPT)
    kernel.died("oom", signal=9)
    result = await running
    assert (result.status, set(result.files)) == (RunStatus.OOM, {"made.txt"})


async def test_files_that_a_run_past_its_limit_might_have_made_are_left_out_and_said(bench: Bench) -> None:
    running = bench.begin(timeout_s=0.05)
    kernel = await bench.sent()
    await until(lambda: bool(kernel.link.sent(protocol.INTERRUPT)))
    kernel.reply("error", ename="KeyboardInterrupt", evalue="", traceback=["KeyboardInterrupt"])
    kernel.idle()
    result = await running
    assert (result.status, result.truncated) == (RunStatus.TIMEOUT, True)
    assert "did not come in time" in result.stderr


async def test_a_run_whose_reply_is_missing_is_not_taken_for_a_success(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    kernel.idle()
    kernel.done()
    result = await running
    assert result.status is RunStatus.ERROR
    assert "whether the code raised is unknown" in str(result.error)


async def test_a_kernel_that_dies_before_the_code_is_sent_has_run_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kernel_id,) = bench.engine.sandboxes
    add_run = bench.store.add_run

    async def add_run_meanwhile(run: Run) -> None:
        bench.engine.say(kernel_id, protocol.DIED, cause="signal", signal=9)
        await add_run(run)

    monkeypatch.setattr(bench.store, "add_run", add_run_meanwhile)
    with pytest.raises(SandboxLost, match="nothing was run"):
        await bench.begin()
    assert bench.stored().status is RunStatus.KERNEL_DIED


async def test_past_its_limit_a_run_is_interrupted_and_keeps_what_it_said(bench: Bench) -> None:
    running = bench.begin(timeout_s=0.05)
    kernel = await bench.sent()
    kernel.print("so far")
    await until(lambda: bool(kernel.link.sent(protocol.INTERRUPT)))
    assert kernel.link.sent(protocol.INTERRUPT)[0]["msg_id"] == kernel.msg_id
    kernel.reply("error", ename="KeyboardInterrupt", evalue="", traceback=["KeyboardInterrupt"])
    kernel.idle()
    kernel.done()
    result = await running
    assert (result.status, result.output) == (RunStatus.TIMEOUT, "so far")
    assert result.error is not None
    assert "time limit of 0.05 s" in result.error
    assert bench.stored().result == result


async def test_a_sandbox_that_answers_nothing_is_ended(bench: Bench) -> None:
    running = bench.begin(timeout_s=0.05)
    kernel = await bench.sent()
    result = await running
    assert result.status is RunStatus.TIMEOUT
    assert kernel.link.sent(protocol.SHUTDOWN)
    assert kernel.link.closed is not None
    await until(lambda: kernel.kernel_id not in bench.engine.sandboxes)


@pytest.mark.parametrize(
    ("cause", "fields", "status", "words"),
    [
        ("signal", {"signal": 9, "exit_code": None}, RunStatus.KERNEL_DIED, "signal 9 (SIGKILL)"),
        ("signal", {"signal": 250, "exit_code": None}, RunStatus.KERNEL_DIED, "signal 250 (unknown)"),
        ("exited", {"signal": None, "exit_code": 3}, RunStatus.KERNEL_DIED, "exit code 3"),
        ("oom", {"signal": 9, "exit_code": None}, RunStatus.OOM, "memory"),
    ],
)
async def test_deaths_are_told_apart(
    bench: Bench, cause: str, fields: dict[str, Any], status: RunStatus, words: str
) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    kernel.print("last words")
    kernel.died(cause, **fields)
    result = await running
    assert (result.status, result.output) == (status, "last words")
    assert words in str(result.error)


@pytest.mark.parametrize(("oom", "status"), [(True, RunStatus.OOM), (False, RunStatus.KERNEL_DIED)])
async def test_of_a_sandbox_that_is_gone_the_engine_knows_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, oom: bool, status: RunStatus
) -> None:
    monkeypatch.setattr("sessions.kernel._RECONNECT_S", 0.01)
    running = bench.begin()
    kernel = await bench.sent()
    bench.engine.fates[kernel.kernel_id] = Fate(137, oom)
    bench.engine.hang_up(kernel.kernel_id)
    assert (await running).status is status


async def test_an_error_of_our_own_still_gives_the_run_its_one_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("sessions.execution.Execution.take_skipped", broken)
    running = bench.begin()
    (await bench.sent()).end()
    result = await running
    assert result.status is RunStatus.LOST
    assert "inside the gateway" in str(result.error)
    assert bench.stored().status is RunStatus.LOST


async def test_without_a_database_nothing_is_run_and_the_kernel_is_kept(bench: Bench) -> None:
    (kernel_id,) = bench.engine.sandboxes
    bench.store.is_reachable = False
    with pytest.raises(StoreUnavailable):
        await bench.begin()
    assert bench.engine.link(kernel_id).binary == []
    bench.store.is_reachable = True
    running = bench.begin()
    kernel = await bench.sent()
    assert kernel.kernel_id == kernel_id
    kernel.end()
    assert (await running).status is RunStatus.OK


class HangingStore(MemoryStore):
    """A store that takes a run in only after it was given up, as a database does that was stopped and goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Run] = []
        self.hangs = True

    async def add_run(self, run: Run) -> RunRecord | None:
        if self.hangs:
            self.late.append(run)
            raise StoreUnavailable
        return await super().add_run(run)

    async def go_on(self) -> None:
        self.hangs = False
        for run in self.late:
            await super().add_run(run)


async def test_a_run_that_the_database_takes_in_too_late_is_withdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.service, "_WITHDRAWAL_PAUSES_S", (SOON_S, 2 * SOON_S))
    store = HangingStore()
    bench = await Bench(store).start()
    with pytest.raises(StoreUnavailable):
        await bench.begin(idempotency_key="k")
    await store.go_on()
    # Nobody is told to wait for a run that nobody runs.
    with pytest.raises(StoreUnavailable):
        await bench.begin(idempotency_key="k")
    await until(lambda: not store.runs)
    await store.go_on()  # later still
    await until(lambda: not bench.service._disowned)
    assert store.runs == {}
    running = bench.begin(idempotency_key="k")
    (await bench.sent()).end()
    assert (await running).status is RunStatus.OK
    await bench.stop()


async def test_an_end_that_cannot_be_stored_is_named_and_stored_once_the_database_is_back(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    bench.store.is_reachable = False
    kernel.print("kept")
    kernel.end()
    with pytest.raises(EndNotStored, match="has ended with status ok"):
        await running
    assert bench.stored().finished_at is None
    bench.store.is_reachable = True
    await until(lambda: bench.stored().finished_at is not None)
    assert bench.stored().result.output == "kept"
    assert [event.seq for event in bench.stored().events.values()] == [1, 2, 3]


async def test_events_that_the_database_refuses_cost_the_run_only_those(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.recording, "_FIRST_RETRY_S", 0.01)
    bench = await Bench(RefusingStore()).start()
    running = bench.begin()
    kernel = await bench.sent()
    kernel.print("1\n")
    kernel.end()
    result = await running
    assert (result.status, result.output, result.truncated) == (RunStatus.OK, "1\n", True)
    assert bench.stored().result == result
    await bench.stop()


async def test_a_caller_who_leaves_does_not_stop_the_run(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    running.cancel()
    await asyncio.wait([running])
    kernel.print("still here")
    kernel.end()
    await until(lambda: bench.stored().finished_at is not None)
    assert bench.stored().result.output == "still here"


async def test_languages_that_are_not_there_and_variables_that_cannot_be_set_are_said(bench: Bench) -> None:
    with pytest.raises(UnsupportedLanguage, match="other, python"):
        await bench.begin(language="cobol")
    with pytest.raises(InvalidRequest):
        await bench.begin(language="other", variables={"x": 1})
    assert bench.store.runs == {}


async def test_draining_waits_for_what_runs_and_takes_no_more(bench: Bench) -> None:
    running = bench.begin()
    kernel = await bench.sent()
    draining = asyncio.ensure_future(bench.service.drain(5.0))
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        await bench.begin()
    assert not bench.service.readiness().ready
    assert not draining.done()
    kernel.end()
    await draining
    assert (await running).status is RunStatus.OK


async def test_while_draining_a_sandbox_that_ends_is_still_asked_after(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.kernel._RECONNECT_S", 0.01)
    running = bench.begin()
    kernel = await bench.sent()
    draining = asyncio.ensure_future(bench.service.drain(5.0))
    await asyncio.sleep(0)
    bench.engine.fates[kernel.kernel_id] = Fate(137, oom=True)
    bench.engine.hang_up(kernel.kernel_id)
    assert (await running).status is RunStatus.OOM
    await draining


async def test_closing_without_a_database_still_says_how_the_run_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.service, "_COMMIT_PATIENCE_S", 30.0)
    running = bench.begin()
    kernel = await bench.sent()
    bench.store.is_reachable = False
    kernel.end()
    await asyncio.sleep(0.02)
    await bench.service.close()
    with pytest.raises(EndNotStored, match=r"status ok, .* lost: this gateway is shutting down"):
        await running


async def test_what_runs_at_the_very_end_has_an_end_as_well(bench: Bench) -> None:
    running = bench.begin()
    (await bench.sent()).print("cut off")
    await bench.service.close()
    result = await running
    assert (result.status, result.output) == (RunStatus.KERNEL_DIED, "cut off")
    assert result.error == "The gateway is shutting down."
    assert bench.stored().result == result


async def test_runs_of_an_earlier_gateway_are_settled_at_the_start() -> None:
    bench = Bench()
    run = Run(RunId("r"), ANONYMOUS, GATEWAY, "python", "", {}, 1.0, datetime.now(UTC), kernel_id=KernelId("k"))
    await bench.store.add_run(run)
    await bench.store.append(run.run_id, Batch((Event(1, EventType.STARTED, {}),)))
    await bench.start()
    assert bench.stored().status is RunStatus.LOST
    assert max(bench.stored().events) == 2
    await bench.stop()


async def test_a_store_that_is_away_is_a_reason_not_to_be_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions.service, "_HEALTH_PAUSE_S", 0.01)
    bench = await Bench().start()
    bench.store.is_reachable = False
    await until(lambda: not bench.service.readiness().ready)
    assert bench.service.readiness().reasons
    bench.store.is_reachable = True
    await until(lambda: bench.service.readiness().ready)
    await bench.stop()
