"""What a run of a session says of its kernel, once and truthfully: that it is fresh, that variables were lost."""

from __future__ import annotations

import asyncio

import pytest
from doubles import until
from workbench import Bench, S, news

from kernel_image import protocol
from sessions.errors import EndNotStored, NotFound, StoreUnavailable, Unavailable
from sessions.model import ANONYMOUS, RunStatus, SessionNews, SessionState


async def test_the_first_run_makes_the_session_and_only_that_one_says_so(bench: Bench) -> None:
    first = await bench.serve("x = 1", session_id=S)
    kernel = bench.kernel_of()
    second = await bench.serve("x", "1", session_id=S)
    assert (news(first), news(second)) == ((True, False), (False, False))
    assert second.output == "1"
    assert bench.kernel_of().kernel_id == kernel.kernel_id
    assert bench.service.get_session(ANONYMOUS, S).state is SessionState.IDLE
    started = bench.stored(first.run_id).events[1].fields
    assert (started["session_id"], started["session_created"]) == (S, True)


async def test_a_session_that_a_client_has_made_is_no_news(bench: Bench) -> None:
    view = await bench.create()
    assert (view.session.session_id, view.state) == (S, SessionState.IDLE)
    assert news(await bench.serve("x", session_id=S)) == (False, False)


async def test_variables_of_a_new_session_are_set_before_it_is_there(bench: Bench) -> None:
    creating = asyncio.ensure_future(bench.create(variables={"x": 1}))
    setting = await bench.sent()
    assert not creating.done()
    setting.end()
    await creating
    assert news(await bench.serve("x", session_id=S)) == (False, False)


async def test_a_session_whose_variables_cannot_be_set_is_not_there(bench: Bench) -> None:
    creating = asyncio.ensure_future(bench.create(variables={"x": 1}))
    (await bench.sent()).died("signal", signal=9)
    with pytest.raises(Unavailable, match="variables could not be set"):
        await creating
    assert bench.store.sessions == {}
    with pytest.raises(NotFound):
        bench.service.get_session(ANONYMOUS, S)


async def test_a_death_in_a_run_is_said_by_that_run_and_the_next_has_a_fresh_kernel(bench: Bench) -> None:
    await bench.serve("x = 1", session_id=S)
    running = bench.begin("crash", session_id=S)
    kernel = await bench.sent("crash")
    kernel.died("signal", signal=11)
    kernel.next_process()
    died = await running
    assert (died.status, news(died)) == (RunStatus.KERNEL_DIED, (False, True))
    assert news(await bench.serve("x", session_id=S)) == (True, False)
    assert news(await bench.serve("y", session_id=S)) == (False, False)
    assert bench.kernel_of().kernel_id == kernel.kernel_id  # the files are still there


async def test_a_sandbox_that_goes_in_a_run_is_replaced_for_the_next(bench: Bench) -> None:
    running = bench.begin("allocate", session_id=S)
    kernel = await bench.sent("allocate")
    bench.engine.end_sandbox(kernel.kernel_id, oom=True)
    died = await running
    assert (died.status, news(died)) == (RunStatus.OOM, (True, True))
    assert bench.session().kernel_id is None
    assert news(await bench.serve("x", session_id=S)) == (True, False)
    assert bench.kernel_of().kernel_id != kernel.kernel_id
    assert kernel.kernel_id not in bench.engine.sandboxes


async def test_a_process_that_died_while_idle_is_told_by_the_next_run_once(bench: Bench) -> None:
    await bench.serve("x = 1", session_id=S)
    bench.kernel_of().die_idle()
    assert news(await bench.serve("x", session_id=S)) == (True, True)
    assert news(await bench.serve("x", session_id=S)) == (False, False)


async def test_a_sandbox_that_went_while_idle_is_told_by_the_next_run_once(bench: Bench) -> None:
    await bench.serve("x = 1", session_id=S)
    kernel = bench.kernel_of()
    bench.engine.end_sandbox(kernel.kernel_id)
    await until(lambda: bench.session().kernel_id is None)
    assert bench.service.get_session(ANONYMOUS, S).state is SessionState.DEAD
    assert news(await bench.serve("x", session_id=S)) == (True, True)
    assert bench.kernel_of().kernel_id != kernel.kernel_id
    assert news(await bench.serve("x", session_id=S)) == (False, False)


async def test_a_sandbox_that_goes_right_behind_the_end_of_a_run_is_told_by_the_next(bench: Bench) -> None:
    await bench.serve("x = 1", session_id=S)
    running = bench.begin("y = 1", session_id=S)
    kernel = await bench.sent("y = 1")
    kernel.end()
    kernel.publish("stream", {})
    kernel.engine.dialled[kernel.kernel_id][0].on_binary(b"nonsense")  # and the gateway has given it up
    assert news(await running) == (False, False)
    assert news(await bench.serve("y", session_id=S)) == (True, True)


async def test_a_fresh_session_that_nothing_has_run_in_has_lost_nothing(bench: Bench) -> None:
    bench.store.is_reachable = True
    add_run = bench.store.add_run
    bench.store.add_run = _unavailable  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await bench.begin("x", session_id=S)
    bench.store.add_run = add_run  # type: ignore[method-assign]
    bench.engine.end_sandbox(bench.session().kernel_id or "")  # type: ignore[arg-type]
    await until(lambda: bench.session().kernel_id is None)
    assert news(await bench.serve("x", session_id=S)) == (True, False)


async def _unavailable(*_: object) -> None:
    raise StoreUnavailable


async def test_leaving_says_that_variables_are_lost_and_the_next_run_has_a_fresh_kernel(bench: Bench) -> None:
    running = bench.begin("exit()", session_id=S)
    kernel = await bench.sent("exit()")
    kernel.reply(payload=[{"source": "ask_exit", "keepkernel": False}])
    kernel.idle()
    kernel.done()
    left = await running
    kernel.die_idle()
    assert (left.status, news(left)) == (RunStatus.OK, (True, True))
    assert news(await bench.serve("x", session_id=S)) == (True, False)
    assert news(await bench.serve("x", session_id=S)) == (False, False)


async def test_a_restart_that_a_client_asked_for_is_no_news(bench: Bench) -> None:
    await bench.serve("x = 1", session_id=S)
    kernel = bench.kernel_of()
    restarting = asyncio.ensure_future(bench.service.restart_session(ANONYMOUS, S))
    await until(lambda: bool(kernel.link.sent(protocol.RESTART)))
    kernel.engine.say(kernel.kernel_id, protocol.DIED, msg_id=None, cause="restart")
    assert not restarting.done()
    kernel.next_process()
    assert (await restarting).state is SessionState.IDLE
    assert bench.session().generation == 2
    assert news(await bench.serve("x", session_id=S)) == (False, False)


async def test_a_restart_cancels_what_runs_and_what_waits_goes_on_in_the_next_process(bench: Bench) -> None:
    running = bench.begin("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    waiting = bench.begin("after", session_id=S)
    await until(lambda: len(bench.store.runs) == 2)
    restarting = asyncio.ensure_future(bench.service.restart_session(ANONYMOUS, S))
    await until(lambda: bool(kernel.interrupts()))
    kernel.interrupted()
    stopped = await running
    assert stopped.status is RunStatus.CANCELLED
    assert str(stopped.error).startswith("The session was restarted while this ran.")
    await until(lambda: bool(kernel.link.sent(protocol.RESTART)))
    assert bench.times_sent("after") == 0
    kernel.died("restart", msg_id=None)
    kernel.next_process()
    await restarting
    (await bench.sent("after")).end("2")
    assert ((await waiting).output, news(await waiting)) == ("2", (False, False))


@pytest.mark.timeouts(restart_timeout_s=0.05)
@pytest.mark.parametrize("how", ["silent", "gone", "dead", "away"])
async def test_a_restart_that_cannot_be_had_is_an_error_and_the_loss_of_the_files_is_news(
    bench: Bench, how: str
) -> None:
    await bench.serve("x = 1", session_id=S)
    kernel = bench.kernel_of()
    if how == "away":
        bench.engine.disconnect(kernel.kernel_id)
    restarting = asyncio.ensure_future(bench.service.restart_session(ANONYMOUS, S))
    if how == "gone":
        await until(lambda: bool(kernel.link.sent(protocol.RESTART)))
        bench.engine.end_sandbox(kernel.kernel_id)
    if how == "dead":
        await until(lambda: bool(kernel.link.sent(protocol.RESTART)))
        bench.engine.say(kernel.kernel_id, protocol.STATE, state="dead")
    with pytest.raises(Unavailable, match="its files are gone"):
        await restarting
    assert bench.service.get_session(ANONYMOUS, S).state is SessionState.DEAD
    assert news(await bench.serve("x", session_id=S)) == (True, True)
    assert bench.kernel_of().kernel_id != kernel.kernel_id
    assert news(await bench.serve("x", session_id=S)) == (False, False)


@pytest.mark.parametrize("used_between", [False, True])
async def test_a_restart_does_not_hide_that_the_sandbox_was_gone_before(bench: Bench, *, used_between: bool) -> None:
    await bench.serve("x = 1", session_id=S)
    kernel = bench.kernel_of()
    bench.engine.end_sandbox(kernel.kernel_id)
    await until(lambda: bench.session().kernel_id is None)
    if used_between:
        await bench.service.session_files(ANONYMOUS, S)
        fresh = bench.kernel_of()
        restarting = asyncio.ensure_future(bench.service.restart_session(ANONYMOUS, S))
        await until(lambda: bool(fresh.link.sent(protocol.RESTART)))
        fresh.next_process()
        view = await restarting
    else:
        view = await bench.service.restart_session(ANONYMOUS, S)
    assert (view.state, view.session.news) == (SessionState.IDLE, SessionNews.LOST)
    assert news(await bench.serve("x", session_id=S)) == (True, True)


@pytest.mark.timeouts(restart_timeout_s=0.05)
async def test_a_restart_does_not_wait_for_ever_for_the_run_at_work(bench: Bench) -> None:
    running = bench.begin("sleep", session_id=S)
    kernel = await bench.sent("sleep")
    bench.store.is_reachable = False
    kernel.end()
    with pytest.raises(Unavailable, match="has not ended, so the kernel was not restarted"):
        await bench.service.restart_session(ANONYMOUS, S)
    assert not kernel.link.sent(protocol.RESTART)
    bench.store.is_reachable = True
    with pytest.raises(EndNotStored):
        await running
    assert news(await bench.serve("x", session_id=S)) == (False, False)


async def test_a_request_that_the_ending_process_has_not_taken_is_sent_to_the_next_one(bench: Bench) -> None:
    await bench.serve("x = 1", session_id=S)
    running = bench.begin("x", session_id=S)
    kernel = await bench.sent("x")
    kernel.die_idle()  # it was sent to the process before this one
    kernel.reject()
    again = await bench.sent("x")
    assert again.kernel_id == kernel.kernel_id
    assert again.msg_id != kernel.msg_id
    again.end("1")
    result = await running
    assert (result.output, news(result)) == ("1", (True, True))


async def test_variables_of_a_run_in_a_session_are_set_before_its_code_is_sent(bench: Bench) -> None:
    await bench.create()
    running = bench.begin("x", session_id=S, variables={"x": 1})
    setting = await bench.sent()
    assert setting.code != "x"
    setting.end()
    (await bench.sent("x")).end("1")
    assert (await running).output == "1"
