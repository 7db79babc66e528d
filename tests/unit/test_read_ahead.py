"""What a supervisor's connection keeps in memory: little, however the frames come."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import cast

import pytest
from tornado.iostream import IOStream

from gateway.supervisors import _READ_BYTES, _ReadAhead

LARGE = 1 << 20


class Pieces:
    """A stream that has its bytes in pieces of this size."""

    def __init__(self, data: bytes, piece_bytes: int) -> None:
        self._data = data
        self._piece_bytes = piece_bytes
        self._at = 0

    async def read_bytes(self, most: int, *, partial: bool) -> bytes:
        assert partial
        piece = self._data[self._at : self._at + min(most, self._piece_bytes)]
        self._at += len(piece)
        return piece


def reader(data: bytes, piece_bytes: int) -> _ReadAhead:
    made = _ReadAhead.__new__(_ReadAhead)
    made.stream = cast("IOStream", SimpleNamespace(read_bytes=Pieces(data, piece_bytes).read_bytes))
    made._wire_bytes_in = 0
    return made


@pytest.mark.parametrize("piece_bytes", [1, 3, 7, 1000, _READ_BYTES])
async def test_bytes_come_in_order_whatever_pieces_they_come_in(piece_bytes: int) -> None:
    data = bytes(range(256)) * 1000
    reading = reader(data, piece_bytes)
    sizes = [2, 0, 4, 100, 2, 8, 150_000, 2, 4, 0, 90_000]
    sizes.append(len(data) - sum(sizes))
    assert b"".join([await reading._read_bytes(size) for size in sizes]) == data
    assert reading._wire_bytes_in == len(data)


async def test_a_frame_that_comes_in_small_pieces_costs_no_more_than_another() -> None:
    reading = reader(bytes(LARGE), 2)
    tracemalloc.start()
    try:
        await reading._read_bytes(LARGE)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * LARGE


async def test_what_is_taken_is_not_kept_behind_a_large_frame() -> None:
    reading = reader(bytes(2 * LARGE), _READ_BYTES)
    await reading._read_bytes(LARGE + 1)
    assert 0 < len(reading._ahead) <= _READ_BYTES
