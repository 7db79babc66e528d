"""Asking the gateway for a kernel, and what a supervisor does with what has come."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from doubles import until

from kernel_image import outside_forks, parity, protocol
from kernel_image.outside_forks import OutsideForks
from kernel_image.parity import Likeness

OWN = Likeness({}, {})


class Gateway:
    """What it was told, and the supervisor's end."""

    def __init__(self) -> None:
        self.controls: list[dict[str, Any]] = []
        self.forks = OutsideForks(self._put_control, OWN, is_wanted=True, oom_score_adjustment=1000)

    def _put_control(self, op: str, **fields: Any) -> None:
        self.controls.append({"op": op, **fields})

    async def answer(self, number: int, **fields: Any) -> int:
        """Let the supervisor ask for a kernel, and answer it."""
        self.controls.clear()
        forking = asyncio.ensure_future(self.forks.fork(number))
        await until(lambda: bool(self.controls))
        assert self.controls == [{"op": "fork_wanted", "number": number}]
        self.forks.on_forked({"op": "forked", "number": number, **fields})
        return await forking


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def forked() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Likeness, int]]:
    """What has been compared; nothing differs."""
    seen: list[tuple[int, Likeness, int]] = []

    def differences(pid: int, own: Likeness, *, oom_score_adjustment: int) -> list[str]:
        seen.append((pid, own, oom_score_adjustment))
        return []

    monkeypatch.setattr(parity, "differences", differences)
    return seen


async def test_a_kernel_that_is_alike_is_taken(gateway: Gateway, compared: list[tuple[int, Likeness, int]]) -> None:
    assert await gateway.answer(1, pid=4711, failed_preloads={"numpy": "ImportError: no"}) == 4711
    assert compared == [(4711, OWN, 1000)]
    assert gateway.forks.failed_preloads == {"numpy": "ImportError: no"}
    assert gateway.forks.is_wanted
    assert await gateway.answer(2, pid=4712) == 4712
    assert gateway.forks.failed_preloads == {}


async def test_a_refusal_is_an_error_and_the_next_kernel_is_asked_for_again(gateway: Gateway) -> None:
    with pytest.raises(OSError, match=r"no kernel was forked: The zygote does not answer\."):
        await gateway.answer(1, why="The zygote does not answer.")
    assert gateway.forks.is_wanted


@pytest.mark.parametrize("pid", [None, "4711", 4711.0, True, 1, 0, -1, -4711])
@pytest.mark.usefixtures("compared")
async def test_an_answer_without_a_process_is_an_error(gateway: Gateway, pid: object) -> None:
    with pytest.raises(OSError, match="no kernel was forked"):
        await gateway.answer(1, pid=pid)


async def test_a_gateway_that_does_not_answer_is_not_waited_for(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, compared: list[tuple[int, Likeness, int]]
) -> None:
    monkeypatch.setattr(outside_forks, "_ANSWER_TIMEOUT_S", 0.01)
    with pytest.raises(TimeoutError):
        await gateway.forks.fork(1)
    gateway.forks.on_forked({"number": 1, "pid": 4711})
    assert compared == []
    assert gateway.forks.is_wanted


async def test_an_answer_to_another_question_is_none_to_this(
    gateway: Gateway, compared: list[tuple[int, Likeness, int]]
) -> None:
    forking = asyncio.ensure_future(gateway.forks.fork(2))
    await until(lambda: bool(gateway.controls))
    for fields in ({"number": 1, "pid": 5}, {"pid": 6}, {"number": "2", "pid": 7}, {"number": None, "pid": 8}):
        gateway.forks.on_forked(fields)
    gateway.forks.on_forked({"number": 2, "pid": 9})
    gateway.forks.on_forked({"number": 2, "pid": 10})
    assert await forking == 9
    assert [pid for pid, *_ in compared] == [9]


async def test_a_kernel_that_differs_is_killed_and_none_is_asked_for_again(
    gateway: Gateway, forked: subprocess.Popen[bytes]
) -> None:
    # Nothing is patched here: by its open files and its score, this process is no kernel.
    with pytest.raises(OSError, match="what was forked was killed: it differs in environment"):
        await gateway.answer(1, pid=forked.pid)
    assert forked.wait(30) == -signal.SIGKILL
    assert not gateway.forks.is_wanted
    refused = gateway.controls[-1]
    assert refused["op"] == "fork_refused"
    assert {"files", "oom_score_adj"} <= {*refused["why"].removeprefix("it differs in ").split(", ")}


async def test_a_kernel_that_has_ended_meanwhile_is_an_error_and_no_reason_to_ask_for_none(
    gateway: Gateway, forked: subprocess.Popen[bytes]
) -> None:
    forked.kill()
    forked.wait()
    with pytest.raises(OSError, match="what was forked has ended"):
        await gateway.answer(1, pid=forked.pid)
    assert gateway.controls[-1]["op"] == "fork_wanted"
    assert gateway.forks.is_wanted


@pytest.mark.parametrize(("number", "told"), [(1, [protocol.FORK_REFUSED]), (2, [])])
async def test_one_that_differs_is_killed_and_the_gateway_told_if_no_code_can_be_the_reason(
    number: int, told: list[str]
) -> None:
    said: list[tuple[str, Any]] = []
    forks = OutsideForks(
        lambda op, **fields: said.append((op, fields)),
        parity.likeness("self", environment={}),
        is_wanted=True,
        oom_score_adjustment=1000,
    )
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
    forking = asyncio.ensure_future(forks.fork(number))
    await asyncio.sleep(0)
    forks.on_forked({"number": number, "pid": other.pid})
    with pytest.raises(OSError, match="it differs in"):
        await forking
    async with asyncio.timeout(30):
        assert await other.wait() == -signal.SIGKILL
    assert not forks.is_wanted
    assert [op for op, _ in said] == [protocol.FORK_WANTED, *told]


async def test_one_that_could_not_be_forked_leaves_the_others_wanted() -> None:
    forks = OutsideForks(
        lambda *_, **__: None, parity.likeness("self", environment={}), is_wanted=True, oom_score_adjustment=1000
    )
    forking = asyncio.ensure_future(forks.fork(1))
    await asyncio.sleep(0)
    forks.on_forked({"number": 1, "why": "it has ended"})
    with pytest.raises(OSError, match="it has ended"):
        await forking
    assert forks.is_wanted
