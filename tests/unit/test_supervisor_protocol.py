"""The wire format of kernel_image.protocol: what one end encodes the other decodes, and nothing else is let through."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernel_image import protocol
from kernel_image.protocol import FrameError, SupervisorSettings

channels = st.text(st.characters(codec="ascii"), max_size=16)
messages = st.lists(st.binary(max_size=40), min_size=4, max_size=protocol.MAX_PARTS)


@given(channels, messages)
def test_a_message_comes_out_as_it_went_in(channel: str, parts: list[bytes]) -> None:
    assert protocol.decode_message(protocol.encode_message(channel, parts)) == (channel, parts)


def test_the_largest_message_the_protocol_promises_is_decoded() -> None:
    parts = [b"x"] * protocol.MAX_PARTS
    assert protocol.decode_message(protocol.encode_message("iopub", parts)) == ("iopub", parts)
    with pytest.raises(FrameError):
        protocol.decode_message(protocol.encode_message("iopub", [*parts, b"x"]))


def test_a_message_of_fewer_than_four_parts_is_refused() -> None:
    with pytest.raises(FrameError):
        protocol.decode_message(protocol.encode_message("iopub", [b"{}"] * 3))


def packed(*numbers: int, rest: bytes = b"") -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers) + rest


@given(st.binary(max_size=200))
@example(b"")
@example(packed(6))
@example(packed(2**64 - 1))
@example(packed(6, 56, 56, 56, 56, 56, 2**64 - 1))
@example(packed(6, 0, 0, 0, 0, 0, 56))
@example(packed(6, 56, 61, 60, 60, 60, 60, rest=b"abcd"))
@example(packed(6, 56, 57, 57, 57, 57, 57, rest=b"\xff"))
def test_bytes_that_nobody_encoded_are_refused_as_such(frame: bytes) -> None:
    try:
        channel, parts = protocol.decode_message(frame)
    except FrameError:
        return
    assert protocol.encode_message(channel, parts) == frame


@given(messages, st.data())
def test_a_damaged_frame_is_refused_or_a_whole_other_message(parts: list[bytes], data: st.DataObject) -> None:
    frame = bytearray(protocol.encode_message("iopub", parts))
    position = data.draw(st.integers(0, len(frame) - 1))
    frame[position] ^= data.draw(st.integers(1, 255))
    try:
        channel, damaged = protocol.decode_message(bytes(frame))
    except FrameError:
        return
    assert sum(map(len, damaged)) + len(channel) == sum(map(len, parts)) + len("iopub")


@given(messages, st.integers(min_value=1))
def test_a_frame_cut_short_is_refused(parts: list[bytes], cut: int) -> None:
    frame = protocol.encode_message("iopub", parts)
    with pytest.raises(FrameError):
        protocol.decode_message(frame[: -min(cut, len(frame))])


@given(st.integers(0, 2**64 - 1), st.binary())
def test_a_number_comes_off_as_it_was_put_on(seq: int, frame: bytes) -> None:
    number, rest = protocol.split_number(protocol.number_frame(seq, frame))
    assert (number, bytes(rest)) == (seq, frame)


@given(st.binary(max_size=7))
def test_a_frame_too_short_for_a_number_is_refused(frame: bytes) -> None:
    with pytest.raises(FrameError):
        protocol.split_number(frame)


def test_a_control_message_is_one_json_object_in_ascii() -> None:
    text = protocol.encode_control(protocol.STATE, state="idle \ud800")
    assert text.isascii()
    assert json.loads(text) == {"op": "state", "state": "idle \ud800"}


def test_settings_survive_the_environment() -> None:
    settings = SupervisorSettings("k", "c", "unix:/s", "/work", "/ipc", "/home", preload=("numpy", "pandas"), threads=3)
    assert SupervisorSettings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kernel_id": "k", "unknown": 1}'])
def test_settings_that_are_none_are_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        SupervisorSettings.from_json(text)
