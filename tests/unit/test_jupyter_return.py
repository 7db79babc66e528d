"""Jupyter clients that go away and come back: in the same gateway, and in the next one. They miss nothing."""

from __future__ import annotations

import asyncio
import json

import pytest
from doubles import until
from jupyter_talk import Client
from workbench import Bench, Benches, S, come_back, crash, ended, held, unavailable

from kernel_image import protocol
from sessions.errors import Conflict
from sessions.model import ANONYMOUS, EventType, RunId, RunStatus


def run_ids(bench: Bench) -> list[RunId]:
    return [*bench.store.runs]


# --- to the same gateway ----------------------------------------------------------------------------------------------


async def test_a_client_whose_line_broke_finds_all_that_was_said_meanwhile(bench: Bench) -> None:
    await bench.create()
    lab = await Client.attach(bench)
    await lab.execute("x")
    kernel = await bench.sent("x")
    kernel.print("one ")
    await lab.receives("stream")
    lab.disconnect()
    kernel.end("two")
    await bench.service.result(run_ids(bench)[0])
    back = await Client.attach(bench)
    back.screen = lab.screen
    assert (await back.reply("x"))["status"] == "ok"
    assert back.screen.shown == {"x": "one two"}
    assert back.replayed == []


async def test_what_may_not_have_arrived_is_told_again_from_its_events(bench: Bench) -> None:
    await bench.create()
    lab = await Client.attach(bench, confirms=False)
    await lab.execute("x")
    kernel = await bench.sent("x")
    kernel.print("one ")
    await lab.receives("stream")
    lab.disconnect()
    back = await Client.attach(bench)
    back.screen = lab.screen
    kernel.print("two ")
    await until(lambda: back.screen.shown == {"x": "one two "})
    kernel.end("three")
    assert (await back.reply("x"))["status"] == "ok"
    assert back.screen.shown == {"x": "one two three"}
    assert back.replayed == run_ids(bench)


async def test_a_client_that_leaves_while_it_is_told_is_told_from_the_beginning(bench: Bench) -> None:
    await bench.create()
    lab = await Client.attach(bench, confirms=False)
    await lab.execute("x")
    kernel = await bench.sent("x")
    kernel.print("one ")
    await lab.receives("stream")
    for _ in range(3):
        lab.disconnect()
        lab = await Client.attach(bench, confirms=False)
        await until(lambda: lab.screen.shown == {"x": "one "})  # noqa: B023 - waited for at once
    kernel.end("two")
    await lab.reply("x")
    assert lab.screen.shown == {"x": "one two"}


async def test_a_question_that_a_run_waits_in_is_asked_again_and_one_that_was_answered_is_not(bench: Bench) -> None:
    await bench.create()
    lab = await Client.attach(bench, confirms=False)
    await lab.execute("input()")
    kernel = await bench.sent("input()")
    kernel.publish("input_request", {"prompt": "? ", "password": True}, channel="stdin")
    await lab.receives("input_request")
    lab.disconnect()
    back = await Client.attach(bench, confirms=False)
    other = await Client.attach(bench, "other")
    other.connection._state.outbox.replay(run_ids(bench)[0])
    assert await back.receives("input_request", "input()") == {"prompt": "? ", "password": True}
    await back.send("input_reply", {"value": "42"}, channel="stdin")
    back.disconnect()
    third = await Client.attach(bench, confirms=False)
    await until(lambda: bool(third.told("clear_output")))
    kernel.print("thanks")
    await until(lambda: third.screen.shown.get("input()") == "thanks")
    assert third.told("input_request") == other.told("input_request") == []
    # The next question is asked of whoever is being sent the replay.
    kernel.publish("input_request", {"prompt": "more? ", "password": False}, channel="stdin")
    await third.receives("input_request")
    kernel.end()
    await third.reply("input()")


async def test_a_replay_waits_for_the_database_and_begins_anew(bench: Bench) -> None:
    await bench.create()
    lab = await Client.attach(bench, confirms=False)
    await lab.execute("x")
    (await bench.sent("x")).end("out")
    await lab.reply("x")
    lab.disconnect()
    with unavailable(bench.store, "get_run"):
        back = await Client.attach(bench)
        await until(lambda: bool(back.replayed))
        await asyncio.sleep(0.02)
        assert back.messages == []
    assert (await back.reply("x"))["status"] == "ok"
    assert back.screen.shown == {"x": "out"}


async def test_a_run_that_was_removed_meanwhile_is_passed_over(bench: Bench) -> None:
    await bench.create()
    lab = await Client.attach(bench, confirms=False)
    await lab.execute("x")
    (await bench.sent("x")).end("out")
    await lab.reply("x")
    lab.disconnect()
    bench.stored().expire(bench.clock.now())
    back = await Client.attach(bench)
    await back.execute("y")
    (await bench.sent("y")).end("later")
    await back.reply("y")
    assert back.screen.shown == {"y": "later"}


async def test_the_reply_to_somebody_elses_cell_is_not_retold(bench: Bench) -> None:
    await bench.create()
    lab, other = await Client.attach(bench), await Client.attach(bench, "other", confirms=False)
    await lab.execute("x")
    (await bench.sent("x")).end("out")
    await lab.reply("x")
    await until(lambda: other.states("x") == ["idle"])
    other.disconnect()
    back = await Client.attach(bench, "other")
    await until(lambda: back.states("x") == ["busy", "idle"])
    assert back.screen.shown == {"x": "out"}
    assert back.told("execute_reply") == []


# --- to the next gateway ----------------------------------------------------------------------------------------------


async def test_after_a_crash_a_cell_is_told_from_its_beginning_to_its_end_and_queued_ones_run(benches: Benches) -> None:
    (bench,) = benches
    await bench.create()
    lab = await Client.attach(bench)
    for code in ("x", "y"):
        await lab.execute(code)
    kernel = await bench.sent("x")
    kernel.print("before ")
    await lab.receives("stream")
    await until(lambda: bench.text(run_ids(bench)[0]) == "before ")
    bench = await crash(benches)
    back = await Client.attach(bench)
    back.screen = lab.screen
    stranger = await Client.attach(bench, "other")
    come_back(bench, kernel)
    kernel.end("after")
    assert (await back.reply("x"))["status"] == "ok"
    (await bench.sent("y")).end("next")
    await back.reply("y")
    assert back.screen.shown == {"x": "before after", "y": "next"}
    assert [fields["code"] for fields in back.told("execute_input", "x")] == ["x"]
    assert [bench.times_sent(code) for code in ("x", "y")] == [1, 1]
    assert stranger.replayed == []
    for run_id in run_ids(bench):
        assert (await ended(bench, run_id)).status is RunStatus.OK


@pytest.mark.parametrize("arrived", [True, False])
async def test_the_next_gateway_asks_again_only_if_the_answer_was_lost(benches: Benches, *, arrived: bool) -> None:
    (bench,) = benches
    await bench.create()
    lab = await Client.attach(bench)
    await lab.execute("input()")
    kernel = await bench.sent("input()")
    kernel.publish("input_request", {"prompt": "? ", "password": False}, channel="stdin")
    await lab.receives("input_request")
    (run_id,) = run_ids(bench)
    await until(lambda: any(event.type is EventType.INPUT_REQUEST for event in bench.stored(run_id).events.values()))
    if not arrived:
        bench.engine.disconnect(kernel.kernel_id)
    await lab.send("input_reply", {"value": "first"}, channel="stdin")
    bench = await crash(benches)
    come_back(bench, kernel)
    back = await Client.attach(bench)
    await until(lambda: bool(back.told("clear_output")))
    if arrived:
        with pytest.raises(Conflict):
            await bench.service.answer_input(ANONYMOUS, run_id, "second")
        assert back.told("input_request") == []
    else:
        await back.receives("input_request")
        await back.send("input_reply", {"value": "second"}, channel="stdin")
        _, parts = protocol.decode_message(kernel.link.binary[-1])
        assert b'"second"' in parts[3]
        assert protocol.QUESTION_ID in json.loads(parts[0])
    kernel.end("thanks")
    await back.reply("input()")


async def test_what_ended_a_moment_before_the_client_found_the_next_gateway_is_told(benches: Benches) -> None:
    (bench,) = benches
    await bench.create()
    lab = await Client.attach(bench)
    await lab.execute("old")
    (await bench.sent("old")).end("old")
    await lab.reply("old")
    bench.store.runs[run_ids(bench)[0]].finished_at = bench.clock.now().replace(year=2020)
    await lab.execute("x")
    kernel = await bench.sent("x")
    bench = await crash(benches)
    come_back(bench, kernel)
    kernel.end("out")
    await ended(bench, run_ids(bench)[1])
    back = await Client.attach(bench)
    assert (await back.reply("x"))["status"] == "ok"
    assert back.screen.shown == {"x": "out"}
    stranger = await Client.attach(bench, "other")
    await asyncio.sleep(0.02)
    assert stranger.messages == []


async def test_nothing_that_is_said_while_the_next_gateway_looks_up_the_past_comes_first(benches: Benches) -> None:
    (bench,) = benches
    await bench.create()
    lab = await Client.attach(bench)
    await lab.execute("x")
    kernel = await bench.sent("x")
    kernel.print("one ")
    await until(lambda: bench.text(run_ids(bench)[0]) == "one ")
    bench = await crash(benches)
    come_back(bench, kernel)
    with held(bench.store, "list_runs") as listing:
        attaching = asyncio.ensure_future(Client.attach(bench))
        await until(lambda: listing.count == 1)
        kernel.print("two ")
    back = await attaching
    kernel.end("three")
    await back.reply("x")
    assert back.screen.shown == {"x": "one two three"}
    assert [one.msg_type for one in back.messages][:3] == ["status", "execute_input", "clear_output"]


async def test_a_gateway_that_closes_leaves_its_clients_to_the_next_one(benches: Benches) -> None:
    (bench,) = benches
    await bench.create()
    lab = await Client.attach(bench, confirms=False)
    await lab.execute("x")
    kernel = await bench.sent("x")
    kernel.print("one ")
    await lab.receives("stream")
    lab.disconnect()
    retold = await Client.attach(bench)
    await until(lambda: retold.screen.shown == {"x": "one "})
    async with asyncio.timeout(5):
        await bench.service.close()
    assert retold.told("execute_reply") == []
    assert "dead" not in retold.states()
    retold.disconnect()
    benches.append(await bench.successor())
    come_back(benches[-1], kernel)
    back = await Client.attach(benches[-1])
    kernel.end("two")
    await back.reply("x")
    assert back.screen.shown == {"x": "one two"}


async def test_sessions_of_before_keep_their_clients_apart(bench: Bench) -> None:
    """The same name in two sessions is two clients."""
    await bench.create()
    other = type(S)("t")
    await bench.create(other)
    lab, same = await Client.attach(bench), await Client.attach(bench, "lab", other)
    await lab.execute("x")
    (await bench.sent("x")).end("out")
    await lab.reply("x")
    assert same.messages == []
    assert bench.service.get_session(ANONYMOUS, other).session.session_id == other
