"""Messages out of a sandbox: decoded when they are what they say, dropped when the user's nonsense, never trusted."""

from __future__ import annotations

import json

import jupyter_client
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernel_image.protocol import QUESTION_ID, decode_message, encode_message
from sessions.errors import ProtocolViolation
from sessions.kernels.messages import ACCEPTED, PROTOCOL_VERSION, Message, RequestBuilder, decode, decode_object


def frame(channel: str, header: object, parent: object, content: object, *buffers: bytes) -> bytes:
    parts = [json.dumps(part).encode() for part in (header, parent, {}, content)]
    return encode_message(channel, [*parts, *buffers])


PARENT = {"msg_id": "p"}


def test_a_request_says_what_to_run_and_with_what() -> None:
    data = RequestBuilder().execute("a-msg-id", "print('\ud800')", metadata={"v": ["\ud800\0"]})
    channel, (header, parent, metadata, content) = decode_message(data)
    assert channel == "shell"
    assert json.loads(header)["msg_id"] == "a-msg-id"
    assert json.loads(header)["msg_type"] == "execute_request"
    assert parent == b"{}"
    assert json.loads(metadata) == {"v": ["\ud800\0"]}
    fields = json.loads(content)
    assert (fields["code"], fields["silent"], fields["store_history"]) == ("print('\ud800')", False, True)
    assert (fields["allow_stdin"], fields["stop_on_error"]) == (False, False)


def test_our_messages_have_the_version_of_jupyter_client() -> None:
    assert jupyter_client.protocol_version == PROTOCOL_VERSION


def test_a_silent_request_leaves_no_trace_in_the_history() -> None:
    content = json.loads(decode_message(RequestBuilder().execute("m", "x", silent=True))[1][3])
    assert (content["silent"], content["store_history"]) == (True, False)


def test_code_may_ask_for_input_where_somebody_can_answer_and_the_answer_travels_on_stdin() -> None:
    builder = RequestBuilder()
    assert json.loads(decode_message(builder.execute("m", "x", allow_stdin=True))[1][3])["allow_stdin"] is True
    channel, (header, _, _, content) = decode_message(builder.input_reply("r", "\ud800", {QUESTION_ID: "q"}))
    assert (channel, json.loads(header)["msg_type"]) == ("stdin", "input_reply")
    assert (json.loads(header)["msg_id"], json.loads(header)[QUESTION_ID]) == ("r", "q")
    assert json.loads(content) == {"status": "ok", "value": "\ud800"}


@pytest.mark.parametrize(("channel", "msg_type"), [(c, t) for c, types in ACCEPTED.items() for t in sorted(types)])
def test_an_accepted_message_is_decoded_whole(channel: str, msg_type: str) -> None:
    data = frame(channel, {"msg_type": msg_type}, PARENT, {"x": 1}, b"one", b"two")
    assert decode(memoryview(data)) == Message(channel, msg_type, "p", {"x": 1}, (b"one", b"two"))


@pytest.mark.parametrize(
    "data",
    [
        frame("iopub", {"msg_type": "comm_open"}, PARENT, {}),
        frame("iopub", {"msg_type": "execute_reply"}, PARENT, {}),
        frame("shell", {"msg_type": "stream"}, PARENT, {}),
        frame("unheard", {"msg_type": "stream"}, PARENT, {}),
        frame("iopub", {"msg_type": ["stream"]}, PARENT, {}),
        frame("iopub", {}, PARENT, {}),
        frame("iopub", [], PARENT, {}),
        frame("iopub", {"msg_type": "stream"}, {}, {}),
        frame("iopub", {"msg_type": "stream"}, {"msg_id": 7}, {}),
        frame("iopub", {"msg_type": "stream"}, {"msg_id": "x" * 257}, {}),
        frame("iopub", {"msg_type": "stream"}, None, {}),
        frame("iopub", {"msg_type": "stream"}, PARENT, "text"),
        encode_message("iopub", [b'{"msg_type": "stream"}', b'{"msg_id": "p"}', b"{}", b"{"]),
        encode_message("iopub", [b'{"msg_type": "stream"}', b'{"msg_id": "p"}', b"{}", b'{"x": ' + b"9" * 5000 + b"}"]),
        encode_message("iopub", [b'{"msg_type": "stream"}', b'{"msg_id": "p"}', b"{}", b"[" * 100_000]),
        encode_message(
            "iopub", [b'{"msg_type": "stream"}', b'{"msg_id": "p"}', b"{}", b'{"x":' * 70 + b"1" + b"}" * 70]
        ),
    ],
)
def test_a_message_that_is_not_what_it_says_is_dropped(data: bytes) -> None:
    assert decode(data) is None


@given(st.binary())
@example(b"")
def test_a_frame_without_the_layout_is_the_supervisors_fault(data: bytes) -> None:
    try:
        message = decode(data)
    except ProtocolViolation:
        return
    assert message is None or message.msg_type in ACCEPTED[message.channel]


@given(st.lists(st.binary(max_size=60), min_size=4, max_size=6), st.sampled_from(sorted(ACCEPTED)))
def test_no_parts_make_decoding_fail(parts: list[bytes], channel: str) -> None:
    message = decode(encode_message(channel, parts))
    assert message is None or isinstance(message.content, dict)


@given(
    st.recursive(st.none() | st.text(max_size=3) | st.floats(), lambda v: st.lists(v) | st.dictionaries(st.text(), v))
)
def test_any_content_decodes_to_itself_or_is_dropped(content: object) -> None:
    message = decode(frame("iopub", {"msg_type": "stream"}, PARENT, content))
    if isinstance(content, dict):
        assert message is not None
        assert json.dumps(message.content) == json.dumps(content)
    else:
        assert message is None


def test_depth_is_allowed_up_to_a_bound() -> None:
    assert decode_object('{"x":' * 63 + "[]" + "}" * 63)
    with pytest.raises(ProtocolViolation):
        decode_object('{"x":' * 64 + "[]" + "}" * 64)


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert decode_object(b'{"x": "\xff"}') == {"x": "\ufffd"}


@given(st.binary() | st.text(st.characters(codec=None, categories=None)))
def test_text_is_an_object_or_a_violation(data: bytes | str) -> None:
    try:
        assert isinstance(decode_object(data), dict)
    except ProtocolViolation as error:
        assert str(error).endswith(".")  # noqa: PT017 - the other outcome is allowed too


@pytest.mark.timeout(20)
@pytest.mark.parametrize("value", ["[],", "{},", "1,", '"",', '["a"],'])
def test_a_message_of_too_many_values_is_counted_and_not_decoded(value: str) -> None:
    content = f'{{"x": [{value * 200_000}0]}}'.encode()
    parts = [b'{"msg_type": "stream"}', b'{"msg_id": "p"}', b"{}", content]
    assert decode(encode_message("iopub", parts)) == Message("iopub", "stream", "p", {}, (), dropped_bytes=len(content))
    with pytest.raises(ProtocolViolation):
        decode_object(content)


@pytest.mark.parametrize("text", ["x" * 1_000_000, "[{," * 300_000, '",[' * 200_000, "\\" * 300_000])
def test_a_long_text_is_decoded_whatever_is_in_it(text: str) -> None:
    message = decode(frame("iopub", {"msg_type": "stream"}, PARENT, {"text": text}))
    assert message is not None
    assert message.content == {"text": text}
