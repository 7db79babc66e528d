"""A service on an in-memory engine and store, supervisors that the test drives, and faults of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from doubles import Lifeline, ManualClock, MemoryEngine, MemorySupervisor, RecordingLink, until

from gateway.host.clock import SystemClock
from kernel_image import protocol
from sessions.environment import Environment
from sessions.errors import StoreUnavailable
from sessions.model import (
    ANONYMOUS,
    EventType,
    GatewayId,
    KernelId,
    Result,
    RunId,
    RunRequest,
    Session,
    SessionId,
    SessionRequest,
    TenantId,
)
from sessions.notebook_sessions import NotebookSessions
from sessions.service import Service
from sessions.settings import Limits, PoolSettings, SessionLimits, Timeouts
from sessions.testing.memory_store import MemoryStore, StoredRun
from sessions.wiring import Wiring

GATEWAY = GatewayId("g")
S = SessionId("s")

_SOON_S = 0.05
HURRIED = Timeouts(
    attempt_pause_s=0.01,
    batch_pause_s=0.01,
    commit_timeout_s=_SOON_S,
    cull_pause_s=0.01,
    elsewhere_poll_s=0.01,
    end_timeout_s=1.0,
    files_s_per_mib=0.0,
    files_timeout_s=_SOON_S,
    first_backoff_s=0.01,
    first_write_retry_s=0.01,
    interrupt_grace_s=_SOON_S,
    kill_grace_s=_SOON_S,
    stop_grace_s=_SOON_S,
    unlinked_poll_s=0.01,
    withdrawal_pause_s=0.01,
    withdrawal_retry_s=0.01,
)
"""Very short time-outs, where production waits for seconds or minutes."""


class Kernel:
    """A kernel, and the last run that it was sent; the test decides what it answers."""

    def __init__(self, engine: MemoryEngine, kernel_id: KernelId) -> None:
        self.engine = engine
        self.kernel_id = kernel_id
        self.msg_id = self.supervisor.taken[-1] if self.supervisor.taken else ""

    @property
    def supervisor(self) -> MemorySupervisor:
        return self.engine.supervisors[self.kernel_id]

    @property
    def link(self) -> RecordingLink:
        return self.engine.link(self.kernel_id)

    @property
    def code(self) -> str:
        return self.supervisor.codes[self.msg_id]

    def publish(self, msg_type: str, content: Mapping[str, Any], **fields: Any) -> None:
        self.engine.publish(self.kernel_id, msg_type, self.msg_id, content, **fields)

    def print(self, text: str) -> None:
        self.publish("stream", {"name": "stdout", "text": text})

    def file(self, path: str, data: bytes) -> None:
        self.piece(path, len(data), 0, data)

    def piece(self, path: str, size_bytes: int, offset: int, data: bytes) -> None:
        content = {"path": path, "bytes": size_bytes, "offset": offset}
        self.publish("artifact", content, channel="artifact", buffers=(data,))

    def reply(self, status: str = "ok", **content: Any) -> None:
        self.publish("execute_reply", {"status": status, "execution_count": 1, **content}, channel="shell")

    def idle(self) -> None:
        self.publish("status", {"execution_state": "idle"})

    def done(self, **fields: Any) -> None:
        self.engine.say(self.kernel_id, protocol.DONE, msg_id=self.msg_id, **fields)

    def died(self, cause: str, **fields: Any) -> None:
        self.engine.say(self.kernel_id, protocol.DIED, **{"msg_id": self.msg_id, "cause": cause, **fields})

    def reject(self) -> None:
        """The supervisor refuses this request for good."""
        self.supervisor.outstanding.remove(self.msg_id)
        self.engine.say(self.kernel_id, protocol.REJECTED, msg_id=self.msg_id)

    def next_process(self) -> None:
        self.engine.start_process(self.kernel_id)

    def die_idle(self) -> None:
        """Its process dies while it is idle, and the next one starts."""
        self.engine.say(self.kernel_id, protocol.DIED, msg_id=None, cause="signal", signal=9)
        self.next_process()

    def interrupts(self) -> list[str | None]:
        return [control["msg_id"] for control in self.link.sent(protocol.INTERRUPT)]

    def end(self, text: str = "", **usage: Any) -> None:
        if text:
            self.print(text)
        self.reply()
        self.idle()
        self.done(**({"usage": usage} if usage else {}))

    def interrupted(self) -> None:
        """The code ends by KeyboardInterrupt."""
        self.reply("error", ename="KeyboardInterrupt", evalue="", traceback=["KeyboardInterrupt"])
        self.idle()
        self.done()


class Bench:
    """A service with one warm kernel. The next `Bench` on the same store and engine finds what this one left."""

    def __init__(
        self,
        store: MemoryStore | None = None,
        engine: MemoryEngine | None = None,
        *,
        clock: SystemClock | ManualClock | None = None,
        **changes: Any,
    ) -> None:
        self.store = store or MemoryStore()
        self.engine = engine or MemoryEngine()
        self.clock = clock or SystemClock()
        self._changes = changes
        self._lifelines = [Lifeline.to(self.store), Lifeline.to(self.engine)]
        to_store, to_engine = self._lifelines
        parts: dict[str, Any] = {
            "store": to_store,
            "provisioner": to_engine,
            "switchboard": to_engine,
            "gateway_id": GATEWAY,
            "limits": Limits(queue=changes.pop("queue", 64)),
            "preload": (),
            "credential_of": lambda kernel_id: f"secret of {kernel_id}",
            "clock": self.clock,
            "timeouts": HURRIED,
            **changes,
        }
        pool = parts.pop("pool", PoolSettings(1, 4))
        languages = parts.pop("languages", {"python": "python3", "other": "another"})
        session_limits = parts.pop("session_limits", SessionLimits())
        self.service = Service(Wiring.build(Environment(**parts), pool, languages), session_limits)
        self.notebooks = NotebookSessions(self.service, session_limits)
        self._others = asyncio.all_tasks()

    async def start(self) -> Bench:
        await self.service.start()
        await until(lambda: self.service.readiness().ready)
        return self

    async def stop(self) -> None:
        """Close the gateway, and remove what it has handed over."""
        self.store.is_reachable = True
        await self.service.close()
        self.engine.sandboxes.clear()

    def crash(self) -> None:
        """Stop at once and tell nobody, as `kill -9` does. Supervisors dial again when the test says so."""
        for lifeline in self._lifelines:
            lifeline.is_cut = True
        for task in self.tasks():
            task.cancel()
        self.engine.dialled.clear()
        self.engine.ports.clear()

    def tasks(self) -> set[asyncio.Task[Any]]:
        """The unfinished tasks started since this gateway was made."""
        return asyncio.all_tasks() - self._others - {asyncio.current_task()}

    async def successor(self, **changes: Any) -> Bench:
        """The next gateway on the same world, after a crash; the supervisors have not dialled it yet."""
        bench = Bench(self.store, self.engine, clock=self.clock, **{**self._changes, **changes})
        await bench.service.start()
        return bench

    # --- runs ---------------------------------------------------------------------------------------------------------

    def request(self, code: str = "print(1)", **fields: Any) -> RunRequest:
        given = {"language": "python", "variables": {}, "timeout_s": 10.0, "tenant": ANONYMOUS, **fields}
        return RunRequest(code=code, **given)

    def begin(self, code: str = "print(1)", **fields: Any) -> asyncio.Future[Result]:
        return asyncio.ensure_future(self.service.run(self.request(code, **fields)))

    async def record(self, code: str = "print(1)", **fields: Any) -> RunId:
        return await self.service.begin(self.request(code, **fields))

    async def sent(self, code: str | None = None) -> Kernel:
        """Wait for a kernel with an unfinished request, with this `code` if given, and return it."""
        found: list[Kernel] = []

        def is_sent() -> bool:
            for kernel_id, supervisor in self.engine.supervisors.items():
                if supervisor.outstanding and kernel_id in self.engine.dialled:
                    kernel = Kernel(self.engine, kernel_id)
                    if kernel.msg_id in supervisor.outstanding and code in (None, kernel.code):
                        found.append(kernel)
            return bool(found)

        await until(is_sent)
        return found[0]

    async def serve(self, code: str, text: str = "", **fields: Any) -> Result:
        """Run code to its end, on a kernel that prints `text`."""
        running = self.begin(code, **fields)
        (await self.sent(code)).end(text)
        return await running

    def kernel_of(self, session_id: SessionId = S, tenant: TenantId = ANONYMOUS) -> Kernel:
        """The kernel that a session has now."""
        kernel_id = self.store.sessions[tenant, session_id].kernel_id
        assert kernel_id is not None
        return Kernel(self.engine, kernel_id)

    def times_sent(self, code: str) -> int:
        """How often supervisors have received a request with this code."""
        return sum([*supervisor.codes.values()].count(code) for supervisor in self.engine.supervisors.values())

    # --- what is stored -----------------------------------------------------------------------------------------------

    def stored(self, run_id: RunId | None = None) -> StoredRun:
        if run_id is not None:
            return self.store.runs[run_id]
        (stored,) = self.store.runs.values()
        return stored

    def has_ended(self, run_id: RunId) -> bool:
        return self.stored(run_id).finished_at is not None

    def text(self, run_id: RunId) -> str:
        """The committed output of a run."""
        events = self.stored(run_id).events.values()
        return "".join(str(event.fields["text"]) for event in events if event.type is EventType.STDOUT)

    def session(self, session_id: SessionId = S) -> Session:
        return self.store.sessions[ANONYMOUS, session_id]

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def create(self, session_id: SessionId | None = S, **fields: Any) -> Any:
        given = {"language": "python", "variables": {}, "idle_timeout_s": 100.0, "max_lifetime_s": 1000.0}
        return await self.service.create_session(
            SessionRequest(**{"tenant": ANONYMOUS, "session_id": session_id, **given, **fields})
        )


# --- one gateway after another ----------------------------------------------------------------------------------------

Benches = list[Bench]
"""The gateways of a test, one after the other."""


async def crash(benches: Benches, **changes: object) -> Bench:
    """The next gateway; no supervisor has dialled it yet."""
    benches[-1].crash()
    benches.append(await benches[-1].successor(**changes))
    return benches[-1]


def come_back(bench: Bench, *kernels: Kernel) -> None:
    """Their supervisors dial this gateway."""
    for kernel in kernels:
        bench.engine.dial(kernel.kernel_id)


def assert_whole(bench: Bench, run_id: RunId) -> None:
    """Assert that its events have no gap, start and end once, and agree with the result."""
    stored = bench.stored(run_id)
    types = [event.type for _, event in sorted(stored.events.items())]
    assert sorted(stored.events) == list(range(1, len(types) + 1))
    assert (types[0], types[-1]) == (EventType.STARTED, EventType.END)
    assert types.count(EventType.STARTED) == types.count(EventType.END) == 1
    assert stored.result is not None
    assert bench.text(run_id) == stored.result.output
    assert stored.events[len(types)].fields["status"] == stored.result.status == stored.status


async def ended(bench: Bench, run_id: RunId) -> Result:
    """Wait for the end of a run, and assert that it is whole."""
    async with asyncio.timeout(30):
        result = await bench.service.result(run_id)
    assert_whole(bench, run_id)
    return result


# --- what a database may do -------------------------------------------------------------------------------------------

_Method = Callable[..., Awaitable[Any]]


def unavailable(store: MemoryStore, *names: str) -> AbstractContextManager[None]:
    """Within the block these methods do nothing, and raise StoreUnavailable."""

    def faulty(_: _Method) -> _Method:
        async def method(*_args: Any) -> None:
            raise StoreUnavailable

        return method

    return _instead(store, names, faulty)


def answers_lost(store: MemoryStore, *names: str) -> AbstractContextManager[None]:
    """Within the block these methods do their work, but raise StoreUnavailable, as if the reply were lost."""

    def faulty(do: _Method) -> _Method:
        async def method(*args: Any) -> None:
            await do(*args)
            raise StoreUnavailable

        return method

    return _instead(store, names, faulty)


class Late:
    """Calls to a store that hung. Nobody waits for them any more; they are made when the test lets them arrive."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Awaitable[Any]]] = []

    async def arrives(self) -> None:
        for call in self.calls:
            await call()


@contextmanager
def late(store: MemoryStore, *names: str) -> Iterator[Late]:
    """Within the block these methods raise StoreUnavailable, and their work is done only when it `arrives`."""
    late = Late()

    def faulty(do: _Method) -> _Method:
        async def method(*args: Any) -> None:
            late.calls.append(lambda: do(*args))
            raise StoreUnavailable

        return method

    with _instead(store, names, faulty):
        yield late


class Held:
    """The number of calls so far."""

    count = 0


@contextmanager
def held(store: MemoryStore, *names: str) -> Iterator[Held]:
    """Within the block these methods wait; after it they go on."""
    held, goes_on = Held(), asyncio.Event()

    def faulty(do: _Method) -> _Method:
        async def method(*args: Any) -> Any:
            held.count += 1
            await goes_on.wait()
            return await do(*args)

        return method

    with _instead(store, names, faulty):
        try:
            yield held
        finally:
            goes_on.set()


@contextmanager
def _instead(store: MemoryStore, names: tuple[str, ...], faulty: Callable[[_Method], _Method]) -> Iterator[None]:
    methods = {name: getattr(store, name) for name in names}
    for name, method in methods.items():
        setattr(store, name, faulty(method))
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(store, name, method)


def news(result: Result) -> tuple[bool, bool]:
    """Whether the result says that the session is new, and that variables were lost."""
    assert result.session_id == S
    return result.session_created, result.session_lost
