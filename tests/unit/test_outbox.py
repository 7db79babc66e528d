"""What a Jupyter client still has to be told: in order, whole, once, and in bounded memory, also while it is away."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest
from jupyter_talk import content, message

from sessions.jupyter import outbox as outbox_module
from sessions.jupyter.message_queue import Replay
from sessions.jupyter.messages import ClientMessage
from sessions.jupyter.outbox import Outbox
from sessions.model import RunId

A, B = RunId("a"), RunId("b")
KIB = 1024


def line(text: str, run_id: str = "", size_bytes: int = 0) -> ClientMessage:
    return message("stream", {"text": text, "padding": "x" * size_bytes}, parent_id=run_id)


def reply(msg_id: str) -> ClientMessage:
    return message("complete_reply", msg_id=msg_id, channel="shell")


async def taken(outbox: Outbox) -> list[str | Replay | None]:
    """All that there is to take now: texts, or msg_ids of what is none, and replays, which end at once."""
    items: list[str | Replay | None] = []
    while True:
        try:
            item = await asyncio.wait_for(outbox.get(), 0.01)
        except TimeoutError:
            return items
        if isinstance(item, Replay):
            outbox.replay_sent(item.run_id)
        items.append(item if not isinstance(item, ClientMessage) else content(item).get("text", item.msg_id))
        if item is None:
            return items


async def test_messages_come_out_in_the_order_in_which_they_went_in() -> None:
    outbox = Outbox()
    for number in range(5):
        outbox.put(line(str(number), "a"), A if number % 2 else None)
    assert await taken(outbox) == ["0", "1", "2", "3", "4"]


async def test_taking_waits_for_the_next_message_and_ends_behind_the_last_one() -> None:
    outbox = Outbox()
    taking = asyncio.ensure_future(outbox.get())
    await asyncio.sleep(0)
    outbox.put(line("x"))
    assert isinstance(await taking, ClientMessage)
    outbox.put(line("y"))
    outbox.close()
    assert await taken(outbox) == ["y", None]


async def test_taking_that_is_cancelled_takes_nothing() -> None:
    outbox = Outbox()
    taking = asyncio.ensure_future(outbox.get())
    await asyncio.sleep(0)
    outbox.put(line("x"))
    taking.cancel()
    assert await taken(outbox) == ["x"]


# --- too much ---------------------------------------------------------------------------------------------------------


async def test_a_run_that_is_too_much_is_replayed_from_its_events_where_it_began() -> None:
    outbox = Outbox(limit_bytes=64 * KIB)
    outbox.put(line("before"))
    outbox.put(line("a1", "a"), A)
    outbox.put(line("b1", "b"), B)
    for _ in range(10):
        outbox.put(line("more", "a", 8 * KIB), A)
    outbox.put(line("between"))
    assert await taken(outbox) == ["before", Replay(A), Replay(B), "between"]
    outbox.put(line("afterwards", "a"), A)
    assert await taken(outbox) == ["afterwards"]


async def test_nothing_of_a_run_comes_beside_its_replay() -> None:
    outbox = Outbox()
    outbox.put(line("raw", "a"), A)
    outbox.replay(A)
    outbox.put(line("raw", "a"), A)
    assert isinstance(await outbox.get(), Replay)
    outbox.put(line("while it is being replayed", "a"), A)
    outbox.replay(A)
    outbox.replay_sent(A)
    outbox.put(line("new", "a"), A)
    assert await taken(outbox) == ["new"]


async def test_earlier_runs_are_replayed_before_all_else() -> None:
    outbox = Outbox()
    outbox.put(line("other"))
    outbox.put(line("raw", "b"), B)
    outbox.replay_first([A, B])
    assert await taken(outbox) == [Replay(A), Replay(B), "other"]


async def test_what_belongs_to_no_run_is_cut_in_the_end_replies_last_and_that_is_marked() -> None:
    outbox = Outbox(limit_bytes=64 * KIB)
    outbox.put(reply("r"))
    for number in range(40):
        outbox.put(line(f"{number}", size_bytes=2 * KIB))
    items = await taken(outbox)
    assert "messages or runs were cut: this client did not take them in time" in str(items[0])
    assert items[1] == "r"
    assert items[2:] == [str(number) for number in range(40 - len(items[2:]), 40)]


async def test_one_message_larger_than_the_limit_is_told_to_a_client_that_takes_it() -> None:
    outbox = Outbox(limit_bytes=64 * KIB)
    outbox.put(line("large", size_bytes=200 * KIB))
    outbox.put(line("small"))
    assert await taken(outbox) == ["large"]
    outbox.confirm(1)
    assert await taken(outbox) == ["small"]


async def test_memory_is_bounded_whatever_gathers() -> None:
    outbox = Outbox(limit_bytes=64 * KIB)
    for number in range(5000):
        outbox.put(line("x", f"{number}", KIB), RunId(f"{number}") if number % 3 else None)
        if number % 50 == 0:
            outbox.put(line("large", size_bytes=100 * KIB))
        assert outbox.size_bytes <= 64 * KIB + 110 * KIB
    assert len(outbox._queue) < outbox_module._MAX_REPLAYED_RUNS + 400
    assert len(outbox._replayed) < outbox_module._MAX_REPLAYED_RUNS + 400


async def test_what_cannot_get_below_the_limit_is_not_looked_through_at_every_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shrinks = 0
    shrink = Outbox._shrink

    def counted(self: Outbox) -> None:
        nonlocal shrinks
        shrinks += 1
        shrink(self)

    monkeypatch.setattr(Outbox, "_shrink", counted)
    outbox = Outbox(limit_bytes=64 * KIB)
    outbox.put(line("large", size_bytes=200 * KIB))
    for _ in range(1000):
        outbox.put(line("x"))
    assert shrinks < 60


async def test_a_flood_at_a_client_that_is_away_takes_time_in_proportion() -> None:
    outbox = Outbox()
    one = line("x", "a", 100)
    started_s = time.process_time()
    for number in range(100_000):
        outbox.put(one, RunId(f"{number % 3000}") if number % 2 else None)
    assert time.process_time() - started_s < 5


# --- leaving and coming back ------------------------------------------------------------------------------------------


async def test_what_was_not_confirmed_comes_again_and_what_was_does_not() -> None:
    outbox = Outbox()
    for number in range(4):
        outbox.put(line(str(number)))
    assert await taken(outbox) == ["0", "1", "2", "3"]
    outbox.confirm(2)
    outbox.put(line("4"))
    outbox.requeue_unconfirmed()
    assert await taken(outbox) == ["2", "3", "4"]
    outbox.confirm(outbox.sent)
    outbox.requeue_unconfirmed()
    assert await taken(outbox) == []


async def test_a_run_of_which_something_may_be_missing_is_told_again_as_a_whole() -> None:
    outbox = Outbox()
    outbox.put(line("a1", "a"), A)
    outbox.put(line("between"))
    outbox.put(line("a2", "a"), A)
    await outbox.get()
    outbox.requeue_unconfirmed()
    assert await taken(outbox) == [Replay(A), "between"]


async def test_a_run_of_which_all_has_arrived_goes_on_where_it_was() -> None:
    outbox = Outbox()
    outbox.put(line("a1", "a"), A)
    outbox.put(line("a2", "a"), A)
    await outbox.get()
    outbox.confirm(1)
    outbox.requeue_unconfirmed()
    outbox.put(line("a3", "a"), A)
    assert await taken(outbox) == ["a2", "a3"]


async def test_a_run_that_was_told_and_may_not_have_arrived_is_told_again() -> None:
    outbox = Outbox()
    outbox.replay(A)
    assert await taken(outbox) == [Replay(A)]
    outbox.put(line("since then", "a"), A)
    outbox.requeue_unconfirmed()
    assert await taken(outbox) == [Replay(A)]
    outbox.confirm(outbox.sent)
    outbox.requeue_unconfirmed()
    assert await taken(outbox) == []


async def test_a_run_that_was_being_told_is_told_again() -> None:
    outbox = Outbox()
    outbox.replay(A)
    assert await outbox.get() == Replay(A)
    outbox.put(line("meanwhile", "a"), A)
    outbox.put(line("other"))
    outbox.requeue_unconfirmed()
    assert await taken(outbox) == [Replay(A), "other"]


async def test_a_client_that_confirms_nothing_is_told_no_more_than_can_be_told_again() -> None:
    outbox = Outbox()
    for number in range(600):
        outbox.put(line(str(number), "a"), A if number % 2 else None)
    first = await taken(outbox)
    assert len(first) == outbox_module._WINDOW
    outbox.confirm(100)
    second = await taken(outbox)
    assert [*first, *second] == [str(number) for number in range(outbox_module._WINDOW + 100)]
    outbox.requeue_unconfirmed()
    again = await taken(outbox)
    assert [text for text in again if text != Replay(A)][:3] == ["100", "102", "104"]


async def test_many_runs_on_their_way_to_a_client_that_vanishes_are_all_told_again() -> None:
    outbox = Outbox()
    runs = [RunId(str(number)) for number in range(400)]
    for run_id in runs:
        outbox.put(line(run_id, run_id), run_id)
    await taken(outbox)
    outbox.requeue_unconfirmed()
    again = await taken(outbox)
    outbox.confirm(outbox.sent)
    again += await taken(outbox)
    assert [one.run_id if isinstance(one, Replay) else one for one in again] == runs


async def test_what_is_on_its_way_is_bounded_in_bytes_and_so_is_what_comes_back_of_it() -> None:
    outbox = Outbox(limit_bytes=64 * KIB)
    for _ in range(100):
        outbox.put(line("x", size_bytes=10 * KIB))
        await taken_one(outbox)
    assert outbox._unconfirmed_bytes < (64 + 12) * KIB
    assert outbox.size_bytes > 20 * KIB
    outbox.requeue_unconfirmed()
    assert outbox.size_bytes <= 64 * KIB


async def taken_one(outbox: Outbox) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(outbox.get(), 0.001)
