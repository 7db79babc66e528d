"""A supervisor that wants a kernel from outside: the gateway has the engine fork one, or says why there is none."""

from __future__ import annotations

from typing import Any

import pytest
from doubles import until
from kernel_line import Line
from workbench import Bench

from sessions.model import KernelId


def answers(bench: Bench, kernel_id: KernelId) -> list[dict[str, Any]]:
    return bench.engine.link(kernel_id).sent("forked")


async def test_a_fork_is_answered_with_the_process(bench: Bench) -> None:
    (kernel_id,) = bench.engine.sandboxes
    bench.engine.forks = [4711]
    bench.engine.say(kernel_id, "fork_wanted", number=3)
    await until(lambda: bool(answers(bench, kernel_id)))
    assert answers(bench, kernel_id) == [{"op": "forked", "number": 3, "pid": 4711, "failed_preloads": {}}]


async def test_a_fork_that_fails_is_answered_with_the_reason(bench: Bench) -> None:
    (kernel_id,) = bench.engine.sandboxes
    bench.engine.say(kernel_id, "fork_wanted", number=3)
    await until(lambda: bool(answers(bench, kernel_id)))
    assert answers(bench, kernel_id) == [{"op": "forked", "number": 3, "why": "This fork was told to fail."}]


async def test_a_difference_stops_forks_for_all(bench: Bench) -> None:
    bench.engine.comes_up = False
    sandboxes = set(bench.engine.sandboxes)
    running = bench.begin()
    await until(lambda: len(bench.engine.sandboxes) > len(sandboxes))
    (kernel_id,) = set(bench.engine.sandboxes) - sandboxes
    bench.engine.dial(kernel_id)
    bench.engine.say(kernel_id, "fork_refused", why="it differs in limits")
    assert bench.engine.stopped_forking == "it differs in limits"
    running.cancel()


async def test_the_engines_warnings_are_the_gateways(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.engine, "warnings", lambda: ("There is no zygote.",))
    assert "There is no zygote." in bench.service._kernel_pool.warnings()


@pytest.mark.parametrize("number", [None, "1", 0, -1, 1.5, True, [1]])
async def test_a_number_that_is_none_asks_for_nothing(line: Line, number: object) -> None:
    asked: list[int] = []
    line.kernel.on_fork_wanted = asked.append
    line.ready().say("fork_wanted", number=number)
    line.say("fork_wanted", number=2)
    assert asked == [2]


async def test_a_kernel_is_asked_for_once_however_often_the_frame_comes(line: Line) -> None:
    asked: list[int] = []
    line.kernel.on_fork_wanted = asked.append
    line.ready().say("fork_wanted", number=1)
    line.seq -= 1
    line.say("fork_wanted", number=1)
    assert asked == [1]


@pytest.mark.parametrize("why", [None, 5, "", ["limits"]])
async def test_a_refusal_without_a_reason_is_one(line: Line, why: object) -> None:
    refused: list[str] = []
    line.kernel.on_fork_refused = refused.append
    line.greet()
    line.say("fork_refused", why=why)
    assert refused == ["no reason"]


async def test_where_nobody_forks_nothing_is_said(line: Line) -> None:
    line.ready().say("fork_wanted", number=1)
    line.say("fork_refused", why="it differs")
    assert line.link.sent("forked") == []


async def test_an_answer_after_the_link_has_gone_is_dropped(line: Line) -> None:
    line.ready()
    line.handshake.on_closed()
    line.kernel.tell_forked(1, why="too late")
    assert line.link.sent("forked") == []
