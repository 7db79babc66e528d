"""The spool: numbered without gaps, in order, bounded, and honest about what it dropped."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kernel_image.spool import Frame, Gap, Spool


def gap_frame(seq: int, gap: Gap) -> Frame:
    return f"gap {seq} {gap.frames} {gap.size_bytes}"


def spool(limit_bytes: int) -> Spool:
    return Spool(limit_bytes, gap_frame)


def add(to: Spool, data: bytes, *, droppable: bool = True) -> bool:
    before = to.next_seq
    to.add(lambda _: data, len(data), droppable=droppable)
    return to.next_seq > before


def kept(of: Spool) -> list[tuple[int, Frame]]:
    numbers = range(of.oldest_seq, of.next_seq)
    return [(seq, frame) for seq in numbers if (frame := of.get(seq)) is not None]


def test_frames_are_numbered_from_one() -> None:
    frames = spool(100)
    frames.add(lambda seq: f"frame {seq}", 7, droppable=True)
    frames.add(lambda seq: f"frame {seq}", 7, droppable=True)
    assert kept(frames) == [(1, "frame 1"), (2, "frame 2")]


def test_what_is_acknowledged_is_forgotten_and_makes_room() -> None:
    frames = spool(10)
    assert add(frames, b"x" * 10)
    assert not add(frames, b"y")
    frames.acknowledge(1)
    assert add(frames, b"z")
    assert [frame for _, frame in kept(frames)] == ["gap 2 1 1", b"z"]


def test_overflow_drops_output_and_says_so_in_its_place() -> None:
    frames = spool(8)
    assert add(frames, b"12345678")
    assert not add(frames, b"lost")
    assert not add(frames, b"lost too")
    assert add(frames, b"status", droppable=False)
    assert kept(frames) == [(1, b"12345678"), (2, "gap 2 2 12"), (3, b"status")]


def test_a_gap_that_nothing_follows_is_told_when_asked_for() -> None:
    frames = spool(1)
    assert not add(frames, b"lost")
    assert kept(frames) == []
    frames.close_gap()
    frames.close_gap()
    assert kept(frames) == [(1, "gap 1 1 4")]


@pytest.mark.parametrize("seq", [0, 1, 4, 99])
def test_there_is_no_frame_where_none_is_kept(seq: int) -> None:
    frames = spool(100)
    for data in (b"1", b"2", b"3"):
        add(frames, data)
    frames.acknowledge(1)
    assert frames.get(seq) is None
    assert frames.get(2) == b"2"
    assert frames.oldest_seq == 2


class SpoolAgainstList(RuleBasedStateMachine):
    """A list of all frames ever numbered, and how far they are acknowledged, say what the spool must hold."""

    @initialize(limit_bytes=st.integers(0, 60))
    def begin(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.spool = spool(limit_bytes)
        self.numbered: list[Frame] = []
        self.acknowledged = 0
        self.gap = Gap(0, 0)

    def note_gap(self) -> None:
        if self.gap.frames:
            self.numbered.append(gap_frame(len(self.numbered) + 1, self.gap))
            self.gap = Gap(0, 0)

    @rule(size_bytes=st.integers(1, 30))
    def add_output(self, size_bytes: int) -> None:
        fits = self.spool.size_bytes + size_bytes <= self.limit_bytes
        assert add(self.spool, b"o" * size_bytes) is fits
        if fits:
            self.note_gap()
            self.numbered.append(b"o" * size_bytes)
        else:
            self.gap = Gap(self.gap.frames + 1, self.gap.size_bytes + size_bytes)

    @rule(size_bytes=st.integers(1, 30))
    def add_status(self, size_bytes: int) -> None:
        assert add(self.spool, b"s" * size_bytes, droppable=False)
        self.note_gap()
        self.numbered.append(b"s" * size_bytes)

    @rule(seq=st.integers(0, 40))
    def acknowledge(self, seq: int) -> None:
        self.spool.acknowledge(seq)
        self.acknowledged = max(self.acknowledged, min(seq, len(self.numbered)))

    @rule()
    def close_gap(self) -> None:
        self.spool.close_gap()
        self.note_gap()

    @invariant()
    def holds_exactly_what_is_not_acknowledged(self) -> None:
        expected = list(enumerate(self.numbered, 1))[self.acknowledged :]
        assert kept(self.spool) == expected
        assert self.spool.next_seq == len(self.numbered) + 1
        assert self.spool.oldest_seq == self.acknowledged + 1
        assert self.spool.size_bytes == sum(len(frame) for _, frame in expected)
        assert all(self.spool.get(seq) == frame for seq, frame in expected)
        assert self.spool.get(self.acknowledged) is None

    @invariant()
    def keeps_output_within_the_limit(self) -> None:
        output_bytes = sum(len(f) for _, f in kept(self.spool) if isinstance(f, bytes) and f.startswith(b"o"))
        assert output_bytes <= self.limit_bytes


TestSpoolAgainstList = SpoolAgainstList.TestCase
