"""The events of a living run, for those that follow: in order, bounded, and woken in time."""

from __future__ import annotations

import asyncio

from sessions.model import Event, EventType
from sessions.runs.feed import Feed

BIG = 300_000


def event(seq: int, size_bytes: int = 1) -> Event:
    return Event(seq, EventType.STDOUT, {"text": "x" * size_bytes})


def seqs(feed: Feed, after: int) -> list[int] | None:
    events = feed.after(after)
    return None if events is None else [one.seq for one in events]


def test_what_is_published_comes_in_order_and_once() -> None:
    feed = Feed()
    with feed.following():
        feed.publish([event(1), event(2)])
        feed.publish([event(2), event(3)])  # a batch that was broken off comes again
        assert seqs(feed, 0) == [1, 2, 3]
        assert seqs(feed, 2) == [3]
        assert seqs(feed, 3) == seqs(feed, 99) == []


def test_while_nobody_follows_nothing_is_kept_and_who_comes_then_is_sent_to_the_store() -> None:
    feed = Feed()
    feed.publish([event(1)])
    assert seqs(feed, 0) is None
    with feed.following():
        assert seqs(feed, 0) is None
        feed.publish([event(2)])
        assert seqs(feed, 0) is None
        assert seqs(feed, 1) == [2]
    assert seqs(feed, 1) is None
    assert repr(feed) == "<Feed open, last 2, 0 kept, 0 followers>"


def test_the_events_kept_are_bounded_and_who_falls_behind_is_told() -> None:
    feed = Feed()
    with feed.following():
        for seq in range(1, 10):
            feed.publish([event(seq, BIG)])
        assert seqs(feed, 0) is None
        assert seqs(feed, 6) == [7, 8, 9]
        feed.publish([event(10, 4 * BIG)])
        assert seqs(feed, 9) == [10]  # even one that is larger than all there may be
        assert seqs(feed, 8) is None


def test_long_names_within_an_event_count_as_well() -> None:
    feed = Feed()
    with feed.following():
        for seq in range(1, 10):
            feed.publish([Event(seq, EventType.RESULT, {"data": {str(seq) * BIG: 1}})])
        assert seqs(feed, 0) is None
        assert seqs(feed, 6) == [7, 8, 9]


def test_it_is_followed_until_the_last_follower_leaves() -> None:
    feed = Feed()
    with feed.following():
        with feed.following():
            assert feed.followed.is_set()
        feed.publish([event(1)])
        assert feed.followed.is_set()
        assert seqs(feed, 0) == [1]
    assert not feed.followed.is_set()


async def test_who_waits_is_woken_by_an_event_and_by_the_end() -> None:
    feed = Feed()
    waits = [asyncio.ensure_future(feed.wait(seq)) for seq in (0, 0, 1)]
    await asyncio.sleep(0)
    feed.publish([event(1)])
    await asyncio.gather(*waits[:2])
    await feed.wait(0)
    assert not waits[2].done()
    feed.publish([])
    await asyncio.sleep(0)
    assert not waits[2].done()
    feed.close()
    await waits[2]
    await feed.wait(99)


async def test_a_feed_that_goes_on_counts_on() -> None:
    feed = Feed(last_seq=4)
    with feed.following():
        feed.publish([event(3), event(4), event(5)])
        assert seqs(feed, 4) == [5]
