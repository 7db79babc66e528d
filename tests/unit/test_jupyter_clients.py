"""What a Jupyter client asks at a session's kernel: cells are runs, and the rest goes to the kernel as it is."""

from __future__ import annotations

import asyncio
import json

import pytest
from doubles import until
from jupyter_talk import Client, message
from workbench import Bench, S, unavailable

from kernel_image import protocol
from sessions.model import ANONYMOUS, RunId, RunStatus


@pytest.fixture
async def lab(bench: Bench) -> Client:
    await bench.create()
    return await Client.attach(bench)


def sent_to_kernel(bench: Bench) -> list[str]:
    """The types of all that was sent to the session's kernel."""
    kernel_id = bench.session().kernel_id
    assert kernel_id is not None
    frames = bench.engine.link(kernel_id).binary
    return [json.loads(protocol.decode_message(frame)[1][0])["msg_type"] for frame in frames]


def statuses(bench: Bench) -> list[RunStatus]:
    return [stored.status for stored in bench.store.runs.values()]


# --- cells ------------------------------------------------------------------------------------------------------------


async def test_a_cell_is_a_recorded_run_and_its_output_is_told_as_it_comes(bench: Bench, lab: Client) -> None:
    await lab.execute("print(1)", stop_on_error=True, user_expressions={"x": "1"}, subshell=[1])
    kernel = await bench.sent("print(1)")
    stored = bench.stored()
    assert stored.run.jupyter is not None
    assert stored.run.jupyter.header["subshell"] == [1]
    assert stored.run.jupyter.client == "lab"
    assert stored.run.session_id == S
    _, parts = protocol.decode_message(kernel.link.binary[-1])
    header, asked = json.loads(parts[0]), json.loads(parts[3])
    assert header["msg_id"].startswith(stored.run.run_id)
    assert "subshell" not in header
    assert (asked["user_expressions"], asked["stop_on_error"]) == ({"x": "1"}, False)
    kernel.end("1\n")
    assert (await lab.reply("print(1)"))["status"] == "ok"
    assert lab.screen.shown == {"print(1)": "1\n"}
    assert lab.replayed == []
    assert (await bench.service.result(stored.run.run_id)).output == "1\n"
    await asyncio.sleep(0)
    assert lab.states("print(1)") == ["idle"]
    assert len(lab.told("execute_reply")) == 1


async def test_a_client_cannot_say_what_only_the_gateway_may(bench: Bench, lab: Client) -> None:
    await lab.connection.handle_message(
        message("execute_request", {"code": "x"}, channel="control", msg_id="x", kernel_id="k", session="s")
    )
    kernel = await bench.sent("x")
    kernel.end()
    await lab.reply("x")
    smuggled = message("execute_request", {"code": "y"}, channel="shell", msg_id="y")
    metadata = json.dumps({"cellblock": {"generation": 77, "variables": {"a": 1}}, "mine": 1}).encode()
    object.__setattr__(smuggled, "metadata", metadata)
    await lab.connection.handle_message(smuggled)
    kernel = await bench.sent("y")
    channel, parts = protocol.decode_message(kernel.link.binary[-1])
    assert channel == "shell"
    assert json.loads(parts[2]) == {"cellblock": {"generation": 1}, "mine": 1}
    kernel.end()
    await lab.reply("y")


async def test_all_cells_of_a_large_notebook_are_taken_at_once(bench: Bench, lab: Client) -> None:
    for number in range(500):
        await lab.execute(str(number))
    for number in range(500):
        (await bench.sent(str(number))).end(f"out {number}")
    await lab.reply("499")
    assert lab.screen.shown == {str(number): f"out {number}" for number in range(500)}
    assert [one.parent_id for one in lab.messages if one.msg_type == "execute_reply"] == [str(n) for n in range(500)]


async def test_a_failed_cell_takes_along_what_the_same_notebook_has_queued_and_nothing_else(
    bench: Bench, lab: Client
) -> None:
    for code in ("bad", "next", "after that"):
        await lab.execute(code)
    await lab.execute("another notebook's", session="other")
    runcode = await bench.record("runcode", session_id=S)
    kernel = await bench.sent("bad")
    kernel.reply("error", ename="E", evalue="", traceback=[])
    # Whoever has heard that goes on: this one is not meant.
    await lab.receives("execute_reply", "bad")
    await lab.execute("asked afterwards")
    kernel.idle()
    kernel.done()
    for code in ("next", "after that"):
        assert (await lab.reply(code))["status"] == "aborted"
        assert lab.states(code) == ["busy", "idle"]
    for code in ("another notebook's", "runcode", "asked afterwards"):
        (await bench.sent(code)).end()
    assert (await lab.reply("asked afterwards"))["status"] == "ok"
    assert (await bench.service.result(runcode)).status is RunStatus.OK
    assert [bench.times_sent(code) for code in ("next", "after that")] == [0, 0]


async def test_a_notebook_that_wants_to_go_on_behind_a_failure_does(bench: Bench, lab: Client) -> None:
    await lab.execute("bad", stop_on_error=False)
    await lab.execute("next")
    kernel = await bench.sent("bad")
    kernel.reply("error", ename="E", evalue="", traceback=[])
    kernel.idle()
    kernel.done()
    (await bench.sent("next")).end()
    assert (await lab.reply("next"))["status"] == "ok"


async def test_what_cannot_be_a_cell_is_answered_like_one_that_failed(bench: Bench, lab: Client) -> None:
    for content in (b"[]", b"{", b'{"code": 7}', b'{"x": ' + b"[" * 80 + b"]" * 80 + b"}", b'{"x": "\xff'):
        asked = message("execute_request", channel="shell", msg_id=f"m{len(lab.messages)}")
        object.__setattr__(asked, "content", content)
        await lab.connection.handle_message(asked)
        reply = await lab.reply(asked.msg_id)
        assert (reply["status"], reply["ename"]) == ("error", "Cancelled")
        assert "Nothing was run" in reply["evalue"]
    assert bench.store.runs == {}


@pytest.mark.parametrize(("code", "beside", "is_taken"), [("\u4e09" * 400_000, 0, True), ("x", 2 << 20, False)])
async def test_code_may_be_long_and_what_stands_beside_it_may_not(
    bench: Bench, lab: Client, code: str, beside: int, *, is_taken: bool
) -> None:
    await lab.execute(code, beside="x" * beside)
    assert (len(bench.store.runs) == 1) is is_taken
    if is_taken:
        (await bench.sent()).end()
    assert ((await lab.reply(code))["status"] == "ok") is is_taken


async def test_what_waits_takes_no_more_memory_than_a_tenant_may_have(bench: Bench, lab: Client) -> None:
    large = "x" * 1_000_000
    for number in range(80):
        await lab.execute(str(number), beside=large)
    assert len(bench.store.runs) < 70
    assert "Too much code and data waits" in (await lab.reply("79"))["evalue"]


async def test_without_its_database_nothing_is_run_and_the_client_hears_why(bench: Bench, lab: Client) -> None:
    with unavailable(bench.store, "add_run"):
        await lab.execute("x")
    reply = await lab.reply("x")
    assert (reply["status"], "database" in reply["evalue"]) == ("error", True)
    assert bench.times_sent("x") == 0


async def test_an_end_that_the_database_refuses_is_told_all_the_same(bench: Bench, lab: Client) -> None:
    async def refuse(*_: object) -> None:
        raise ValueError("too large")

    await lab.execute("x")
    kernel = await bench.sent("x")
    bench.store.finish_run = refuse  # type: ignore[assignment]
    kernel.died("signal", signal=9)
    kernel.next_process()
    assert (await lab.reply("x"))["ename"] == "EndNotStored"


async def test_also_to_a_client_that_is_told_the_run_from_its_events(bench: Bench, lab: Client) -> None:
    async def refuse(*_: object) -> None:
        raise ValueError("too large")

    await lab.execute("x")
    kernel = await bench.sent("x")
    lab.connection._state.outbox.replay(RunId(bench.stored().run.run_id))
    await until(lambda: bool(lab.replayed))
    bench.store.finish_run = refuse  # type: ignore[assignment]
    kernel.died("signal", signal=9)
    kernel.next_process()
    assert (await lab.reply("x"))["ename"] == "EndNotStored"


async def test_how_a_run_ends_is_told_whatever_ends_it(bench: Bench, lab: Client) -> None:
    """By its kernel's death, a cancellation while it waits, and one while it runs."""
    await lab.execute("dies")
    await lab.execute("is cancelled", session="other")
    kernel = await bench.sent("dies")
    await bench.service.cancel(ANONYMOUS, list(bench.store.runs)[1])
    assert (await lab.reply("is cancelled"))["ename"] == "Cancelled"
    kernel.print("so far")
    kernel.died("signal", signal=11)
    kernel.next_process()
    assert (await lab.reply("dies"))["ename"] == "KernelDied"
    await until(lambda: lab.states("") == ["restarting", "starting", "idle"])
    assert lab.screen.shown["dies"] == "so farKernelDied"
    await lab.execute("runs on")
    kernel = await bench.sent("runs on")
    await bench.service.cancel(ANONYMOUS, list(bench.store.runs)[2])
    await until(lambda: bool(kernel.interrupts()))
    kernel.interrupted()
    assert (await lab.reply("runs on"))["status"] == "error"
    index = [one.msg_type for one in lab.messages].index("execute_reply")
    assert b"restarting" not in b"".join(one.content for one in lab.messages[:index])


async def test_an_end_that_an_error_of_ours_hides_is_told_and_what_waits_behind_is_not_run(
    bench: Bench, lab: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("sessions.session.session_kernel.SessionKernel.after_run", broken)
    await lab.execute("x")
    await lab.execute("y")
    kernel = await bench.sent("x")
    kernel.died("signal", signal=9)
    kernel.next_process()
    assert (await lab.reply("x"))["ename"] == "EndNotStored"
    assert lab.states("x")[-1] == "idle"
    assert (await lab.reply("y"))["status"] == "aborted"
    assert bench.times_sent("y") == 0
