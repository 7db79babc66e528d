"""An observer of a session that raises costs neither a run nor the session, and no code runs twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from doubles import until
from jupyter_talk import Client
from workbench import Bench, S, news

from kernel_image import protocol
from sessions.errors import EndNotStored
from sessions.model import ANONYMOUS, RunStatus
from sessions.session.live_session import LiveSession
from sessions.session.observer import SessionObserver

CALLS = sorted(name for name in vars(SessionObserver) if not name.startswith("_"))


class Broken:
    """A `SessionObserver` that raises at one of its calls; `calls` are all that were made."""

    def __init__(self, raises_at: str) -> None:
        self.calls: list[str] = []
        self._raises_at = raises_at

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*_: Any, **__: Any) -> None:
            self.calls.append(name)
            if name == self._raises_at:
                raise RuntimeError(name)

        return call


def live_session(bench: Bench) -> LiveSession:
    return bench.service._sessions.get(ANONYMOUS, S)


@pytest.fixture(params=CALLS)
async def broken(bench: Bench, request: pytest.FixtureRequest) -> Broken:
    """Called before the session's own router."""
    broken: Any = Broken(request.param)
    bench.service._sessions._observers.insert(0, lambda _: broken)
    await bench.create()
    return broken


async def test_a_session_lives_its_whole_life_although_an_observer_raises(bench: Bench, broken: Broken) -> None:
    assert (await bench.serve("first", session_id=S)).status is RunStatus.OK
    assert (await bench.serve("second", session_id=S)).status is RunStatus.OK

    lab = await Client.attach(bench)
    for code in ("fails", "aborted"):
        await lab.execute(code)
    kernel = await bench.sent("fails")
    kernel.interrupted()
    assert (await lab.reply("fails"))["status"] == "error"
    assert (await lab.reply("aborted"))["status"] == "aborted"

    bench.kernel_of().die_idle()
    assert news(await bench.serve("after a death", session_id=S)) == (True, True)

    kernel = bench.kernel_of()
    restarting = asyncio.ensure_future(bench.service.restart_session(ANONYMOUS, S))
    await until(lambda: bool(kernel.link.sent(protocol.RESTART)))
    kernel.died("restart", msg_id=None)
    kernel.next_process()
    await restarting
    assert (await bench.serve("after a restart", session_id=S)).status is RunStatus.OK

    await bench.service.delete_session(ANONYMOUS, S)
    await until(lambda: lab.is_over)
    assert lab.states()[-1] == "dead"
    sent = {code: bench.times_sent(code) for code in ("first", "second", "fails", "aborted", "after a death")}
    assert sent == {"first": 1, "second": 1, "fails": 1, "aborted": 0, "after a death": 1}
    assert set(broken.calls) == set(CALLS)


async def test_a_run_whose_end_an_error_of_ours_hides_leaves_the_queue_and_is_not_run_again(bench: Bench) -> None:
    await bench.create()

    def fail(_: object) -> None:
        raise RuntimeError

    live_session(bench)._kernel.settle = fail  # type: ignore[method-assign]
    run_id = await bench.record("x", session_id=S)
    waiting = bench.begin("y", session_id=S)
    (await bench.sent("x")).end("1")
    assert (await bench.service.result(run_id)).output == "1"
    (await bench.sent("y")).end("2")
    assert (await waiting).output == "2"
    assert (bench.times_sent("x"), bench.times_sent("y")) == (1, 1)


async def test_a_run_whose_end_could_not_even_be_made_is_answered_so(bench: Bench) -> None:
    await bench.create()

    def fail(*_: object) -> None:
        raise RuntimeError

    live_session(bench)._kernel.after_run = fail  # type: ignore[method-assign,assignment]
    running = bench.begin("x", session_id=S)
    (await bench.sent("x")).end()
    with pytest.raises(EndNotStored, match="Do not run it again"):
        await running
    assert bench.times_sent("x") == 1


async def test_a_change_after_an_end_that_an_error_of_ours_hides_is_stored(bench: Bench) -> None:
    await bench.create()

    def fail(_: object) -> None:
        raise RuntimeError

    live_session(bench)._kernel.settle = fail  # type: ignore[method-assign]
    run_id = await bench.record("x", session_id=S)
    kernel = await bench.sent("x")
    kernel.end()
    await bench.service.result(run_id)
    await until(lambda: live_session(bench).current is None)
    bench.engine.end_sandbox(kernel.kernel_id)
    await until(lambda: bench.session().kernel_id is None)
