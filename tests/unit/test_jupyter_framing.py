"""Jupyter messages in the two framings: there and back, and what is none of either."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.jupyter.framing import Framed, Framing, Plain, framing_of
from kernel_image.protocol import SUBPROTOCOL, encode_message
from sessions.errors import InvalidRequest
from sessions.jupyter.messages import ClientMessage

FRAMINGS: list[Framing] = [Framed(), Plain()]
HEADER = {"msg_id": "m", "msg_type": "kernel_info_request"}

texts = st.text(max_size=20)
objects = st.dictionaries(
    texts,
    st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3)),
    max_size=4,
)
messages = st.builds(
    lambda channel, header, parent, metadata, content, buffers: ClientMessage(
        channel,
        {**header, **HEADER},
        parent,
        json.dumps(metadata).encode(),
        json.dumps(content).encode(),
        tuple(buffers),
    ),
    st.sampled_from(["shell", "control", "stdin", "iopub"]),
    objects,
    objects,
    objects,
    objects,
    st.lists(st.binary(max_size=20), max_size=4),
)


@pytest.mark.parametrize("framing", FRAMINGS, ids=["framed", "plain"])
@given(message=messages)
def test_what_is_encoded_is_decoded_again(framing: Framing, message: ClientMessage) -> None:
    assert framing.decode(framing.encode(message)) == message


@pytest.mark.parametrize("framing", FRAMINGS, ids=["framed", "plain"])
@settings(max_examples=150)
@given(data=st.data())
def test_whatever_comes_is_a_message_or_refused(framing: Framing, data: st.DataObject) -> None:
    whole = framing.encode(data.draw(messages))
    raw = bytearray(whole.encode() if isinstance(whole, str) else whole)
    for _ in range(data.draw(st.integers(0, 3))):
        where = data.draw(st.integers(0, len(raw) - 1))
        raw[where : where + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        if not raw:
            break
    for given_ in (bytes(raw), raw.decode("utf-8", "replace"), data.draw(st.binary()), data.draw(st.text())):
        try:
            decoded = framing.decode(given_)
        except InvalidRequest:
            continue
        assert isinstance(decoded.header["msg_id"], str)
        assert decoded.channel in ("shell", "control", "stdin", "iopub")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.sampled_from(["shell", "m"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@settings(max_examples=150)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            name: json_values | st.just(HEADER)
            for name in ("channel", "header", "parent_header", "metadata", "content", "buffers")
        },
    )
)
def test_whatever_object_comes_is_a_message_or_refused(fields: dict[str, Any]) -> None:
    try:
        decoded = Plain().decode(json.dumps(fields))
    except InvalidRequest:
        return
    assert isinstance(json.loads(decoded.content), dict)
    assert isinstance(json.loads(decoded.metadata), dict)


# --- what some clients leave out, or put there ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"channel": None},
        {"channel": ""},
        {"buffers": {}},
        {"buffers": []},
        {"parent_header": None, "metadata": "", "content": []},
        {"msg_id": "other", "msg_type": "other", "version": "5.3"},
    ],
    ids=str,
)
def test_what_other_servers_tolerate_is_tolerated(fields: dict[str, Any]) -> None:
    decoded = Plain().decode(json.dumps({"header": HEADER, **fields}))
    assert decoded == ClientMessage("shell", HEADER, {})


def test_unknown_fields_of_a_header_stay() -> None:
    header = {**HEADER, "subshell_id": None, "mine": [{"x": 1}]}
    for framing in FRAMINGS:
        assert framing.decode(framing.encode(ClientMessage("shell", header, {}))).header == header


def test_parts_that_were_left_empty_are_objects() -> None:
    frame = encode_message("shell", [json.dumps(HEADER).encode(), b"", b"", b""])
    assert Framed().decode(frame) == ClientMessage("shell", HEADER, {})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "{",
        "[" * 10_000,
        '{"header": {}}',
        '{"header": {"msg_id": 1, "msg_type": "x"}}',
        '{"header": {"msg_id": "m", "msg_type": null}}',
        '{"header": {"msg_id": "m", "msg_type": "x", "x": NaN}}',
        '{"header": {"msg_id": "m", "msg_type": "x"}, "channel": "hb"}',
        '{"header": {"msg_id": "m", "msg_type": "x"}, "channel": ["shell"]}',
        '{"header": {"msg_id": "m", "msg_type": "x"}, "channel": {"a": 1}}',
        '{"header": {"msg_id": "m", "msg_type": "x"}, "content": 7}',
        '{"header": {"msg_id": "m", "msg_type": "x"}, "content": [1]}',
        '{"header": {"msg_id": "m", "msg_type": "x"}, "content": {"x": Infinity}}',
        '{"header": {"msg_id": "m", "msg_type": "x", "x": "' + "x" * (16 << 10) + '"}}',
        '{"header": {"msg_id": "m", "msg_type": "x"}, "content": ' + '{"x":' * 200 + "1" + "}" * 201,
    ],
    ids=lambda text: text[-40:],
)
def test_what_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Plain().decode(text)
    with pytest.raises(InvalidRequest):
        Framed().decode(text)


@pytest.mark.parametrize("part", [b"[]", b"7", b"{", b"\xff", b'{"x": NaN}', b'{"x":' * 200 + b"1" + b"}" * 200])
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_what_no_kernel_would_take_is_refused_in_the_newer_framing_too(part: bytes, index: int) -> None:
    parts = [json.dumps(HEADER).encode(), b"{}", b"{}", b"{}"]
    parts[index] = part
    with pytest.raises(InvalidRequest):
        Framed().decode(encode_message("shell", parts))


def _offsets(*numbers: int, body: bytes = b"") -> bytes:
    return struct.pack(f"!{len(numbers)}I", *numbers) + body


WHOLE = json.dumps({"header": HEADER}).encode()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0\0\0",
        _offsets(0),
        _offsets(1),
        _offsets(1, 7, body=WHOLE),
        _offsets(1, 1 << 31, body=WHOLE),
        _offsets(2, 12, 11, body=WHOLE),
        _offsets(2, 12, 1 << 20, body=WHOLE),
        _offsets(1 << 31, 12, body=WHOLE),
        _offsets(60, *range(244, 244 + 59 * 1, 1), body=WHOLE),
        _offsets(1, 8, body=b"\xff" + WHOLE),
        WHOLE,
    ],
    ids=lambda message: message[:16].hex(),
)
def test_a_binary_message_with_other_offsets_is_refused(message: bytes) -> None:
    with pytest.raises(InvalidRequest):
        Plain().decode(message)


def test_buffers_of_the_older_framing_are_found_by_their_offsets() -> None:
    message = _offsets(3, 16, 16 + len(WHOLE), 18 + len(WHOLE), body=WHOLE + b"abcde")
    assert Plain().decode(message).buffers == (b"ab", b"cde")


def test_what_is_no_text_of_a_kernels_does_not_keep_the_rest_from_being_told() -> None:
    broken = ClientMessage("iopub", HEADER, {}, content=b'{"text": "\xff"}')
    text = Plain().encode(broken)
    assert isinstance(text, str)
    assert json.loads(text)["content"] == {"text": "\ufffd"}


def test_the_newer_framing_only_where_it_was_agreed_on() -> None:
    assert isinstance(framing_of(SUBPROTOCOL), Framed)
    assert isinstance(framing_of(None), Plain)
