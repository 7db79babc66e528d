"""The output ring: what was written last is there, however it was written, and a hostile count harms nobody."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel_image import output_ring
from kernel_image.output_ring import RING_BYTES, OutputRing

HANDLED = 300
PATIENCE_S = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    output_ring.create(tmp_path / "ring")
    return tmp_path / "ring"


@pytest.fixture
def ring(path: Path) -> Iterator[OutputRing]:
    ring = OutputRing(path, "stdout")
    yield ring
    ring.close()


def test_another_mapping_of_the_file_sees_what_was_written(path: Path, ring: OutputRing) -> None:
    ring.write(b"hello")
    reader = OutputRing(path, "stdout")
    assert reader.after(0) == (b"hello", 0)
    assert reader.after(3) == (b"lo", 0)
    reader.close()


def test_a_signal_handler_that_writes_in_the_middle_of_a_write_loses_nothing(path: Path, ring: OutputRing) -> None:
    handled = []
    given_up_s = time.monotonic() + PATIENCE_S

    def write_too(*_: object) -> None:
        ring.write(b"handler")
        handled.append(None)

    previous = signal.signal(signal.SIGALRM, write_too)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    count = 0
    try:
        while len(handled) < HANDLED and time.monotonic() < given_up_s:
            ring.write(b"code")
            count += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    expected = len(b"code") * count + len(b"handler") * len(handled)
    assert output_ring.written_bytes(path)["stdout"] == ring.written_bytes == expected


def test_the_two_streams_do_not_mix(path: Path, ring: OutputRing) -> None:
    other = OutputRing(path, "stderr")
    ring.write(b"o" * (RING_BYTES + 9))
    other.write(b"e")
    assert other.after(0) == (b"e", 0)
    assert ring.after(9) == (b"o" * RING_BYTES, 0)
    other.close()


def test_what_has_fallen_out_of_the_ring_is_counted(ring: OutputRing) -> None:
    ring.write(b"a" * 1000)
    ring.write(b"b" * RING_BYTES)
    assert ring.after(400) == (b"b" * RING_BYTES, 600)


def test_nothing_is_missing_when_all_has_been_seen(ring: OutputRing) -> None:
    ring.write(b"abc")
    assert ring.after(3) == (b"", 0)
    assert ring.after(1000) == (b"", 0)


sizes = st.one_of(
    st.integers(0, 50), st.integers(RING_BYTES - 3, RING_BYTES + 3), st.sampled_from([RING_BYTES // 2, 3 * RING_BYTES])
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(sizes, max_size=6), st.data())
def test_after_any_writes_exactly_the_missing_end_is_there(path: Path, writes: list[int], data: st.DataObject) -> None:
    output_ring.create(path)
    ring = OutputRing(path, "stderr")
    written = b""
    for number, size_bytes in enumerate(writes):
        piece = (bytes(range(number, number + 97)) * (size_bytes // 97 + 1))[:size_bytes]
        ring.write(piece)
        written += piece
    seen_bytes = data.draw(st.integers(0, len(written)))
    missing = written[seen_bytes:]
    assert ring.written_bytes == len(written)
    assert ring.after(seen_bytes) == (missing[-RING_BYTES:], max(0, len(missing) - RING_BYTES))
    ring.close()


@pytest.mark.parametrize("total", [2**64 - 1, 2**63, RING_BYTES + 1])
def test_a_count_that_the_writer_made_up_gives_no_more_than_the_ring(path: Path, ring: OutputRing, total: int) -> None:
    with path.open("r+b") as file:
        file.write(struct.pack("<Q", total))
    data, gone_bytes = ring.after(0)
    assert len(data) == RING_BYTES
    assert gone_bytes == total - RING_BYTES


def test_a_file_cut_short_is_refused_and_not_read(path: Path) -> None:
    os.truncate(path, 10)
    with pytest.raises((OSError, ValueError)):
        OutputRing(path, "stdout")


def test_a_pipe_in_the_place_of_the_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ring")
    output_ring.create(tmp_path / "ring")
    assert (tmp_path / "ring").is_file()


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("untouched")
    (tmp_path / "ring").symlink_to(tmp_path / "precious")
    output_ring.create(tmp_path / "ring")
    assert (tmp_path / "precious").read_text() == "untouched"
    assert not (tmp_path / "ring").is_symlink()


def test_lone_surrogates_count_the_same_at_both_ends() -> None:
    assert output_ring.encode("a\ud800ü") == b"a?\xc3\xbc"
