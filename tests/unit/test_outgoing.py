"""The room for large answers: who gets in, in which order, and what is left when somebody does not."""

from __future__ import annotations

import asyncio

import pytest

from gateway.http.base.limits import HttpBounds
from gateway.http.base.outgoing import SMALL_BYTES, AnswerRoom, Place, bytes_of
from sessions.errors import Unavailable

MIB = 1 << 20


def room(**bounds: float) -> AnswerRoom:
    given = {"answer_wait_s": 30.0, **bounds}
    return AnswerRoom(HttpBounds(answers_bytes=10 * MIB, **given))  # type: ignore[arg-type]


async def waiting(place: Place, size_bytes: int) -> asyncio.Task[None]:
    task = asyncio.create_task(place.take(size_bytes))
    await asyncio.sleep(0)
    return task


async def test_what_is_small_takes_no_room_and_never_waits() -> None:
    answers = room()
    await answers.place().take(10 * MIB)
    await answers.place().take(SMALL_BYTES)
    await answers.place().make(SMALL_BYTES)
    assert repr(answers) == "<AnswerRoom 10485760>"


async def test_who_came_first_gets_room_first() -> None:
    answers = room()
    first, second, third = (answers.place() for _ in range(3))
    await first.take(8 * MIB)
    large, small = await waiting(second, 9 * MIB), await waiting(third, MIB)
    assert repr(answers) == f"<AnswerRoom {8 * MIB}, 2 wait>"
    first.leave()
    await large
    assert answers.is_wanted == (not small.done())
    await small
    assert repr(answers) == f"<AnswerRoom {10 * MIB}>"


async def test_what_is_larger_than_the_room_is_made_alone() -> None:
    answers = room()
    first, second, third = (answers.place() for _ in range(3))
    await first.take(MIB)
    large = await waiting(second, 50 * MIB)
    first.leave()
    await large
    small = await waiting(third, MIB)
    assert not small.done()
    second.leave()
    await small


async def test_a_place_that_is_held_grows_and_shrinks_at_once() -> None:
    answers = room()
    with answers.place() as place:
        await place.take(9 * MIB)
        await place.take(20 * MIB)
        assert repr(answers) == f"<AnswerRoom {20 * MIB}>"
        shrunk = await waiting(answers.place(), 5 * MIB)
        await place.take(2 * MIB)
        await shrunk
    assert repr(answers) == f"<AnswerRoom {5 * MIB}>"


async def test_who_gives_up_lets_the_others_in() -> None:
    answers = room()
    await answers.place().take(8 * MIB)
    large, small = await waiting(answers.place(), 9 * MIB), await waiting(answers.place(), MIB)
    large.cancel()
    await small
    assert repr(answers) == f"<AnswerRoom {9 * MIB}>"


async def test_who_gives_up_just_when_there_is_room_takes_none() -> None:
    answers = room()
    first = answers.place()
    await first.take(8 * MIB)
    task = await waiting(answers.place(), 9 * MIB)
    first.leave()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert repr(answers) == "<AnswerRoom 0>"


async def test_waiting_has_an_end() -> None:
    answers = room(answer_wait_s=0.05)
    await answers.place().take(8 * MIB)
    with pytest.raises(Unavailable, match="Too many large answers"):
        await answers.place().take(9 * MIB)
    assert repr(answers) == f"<AnswerRoom {8 * MIB}>"


def test_the_size_of_a_value_is_about_that_of_its_texts() -> None:
    value = {"output": "x" * MIB, "results": [{"text/html": "y" * MIB}, {"text/plain": "é" * MIB}], "n": 1}
    assert 3 * MIB < bytes_of(value) < 3 * MIB + 2000
    assert bytes_of("三" * MIB) > 2 * MIB
