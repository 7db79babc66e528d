"""What a supervisor tells of the messages that were forwarded to it, and which answers it passes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernel_image.forwarded import Forwarded
from kernel_image.protocol import QUESTION_ID


def message(msg_type: str, msg_id: Any = "m", parent_id: str = "", **header: Any) -> list[bytes]:
    head, parent = {"msg_id": msg_id, "msg_type": msg_type, **header}, {"msg_id": parent_id}
    return [json.dumps(part).encode() for part in (head, parent, {}, {"value": "x"})]


def answered(forwarded: Forwarded, question: str | None) -> bool:
    """Whether an answer to this question is passed on, without the field that says so."""
    parts = message("input_reply", **({QUESTION_ID: question} if question is not None else {}))
    passed = forwarded.note("stdin", parts)
    assert passed is None or QUESTION_ID.encode() not in passed[0]
    assert passed is None or passed[1:] == parts[1:]
    return passed is not None


def ask(forwarded: Forwarded, question: str, asker: str = "cell") -> None:
    forwarded.note_question("stdin", message("input_request", question, asker))


def test_the_last_message_is_told_whatever_its_channel_and_cells_do_not_count() -> None:
    forwarded = Forwarded()
    assert forwarded.last is None
    for channel, msg_id in (("shell", "a"), ("control", "b"), ("stdin", "c")):
        parts = message("comm_msg", msg_id)
        assert forwarded.note(channel, parts) == parts
        assert forwarded.last == msg_id
    forwarded.note("shell", message("execute_request", "cell"))
    assert forwarded.last == "c"


@pytest.mark.parametrize("header", [b"", b"[]", b"7", b"{}", b'{"msg_id": 7}', b"\xff", b"[" * 100_000])
def test_what_is_no_message_is_passed_on_and_not_told(header: bytes) -> None:
    forwarded = Forwarded()
    parts = [header, b"{}", b"{}", b"{}"]
    assert forwarded.note("stdin", parts) == parts
    assert forwarded.last is None
    forwarded.note_question("stdin", parts)
    forwarded.note_question("shell", parts)


@pytest.mark.parametrize("odd", ["x" * 257, 7, [["nested"]], {"a": 1}, None])
def test_an_odd_id_of_a_question_is_not_told_and_the_question_is_open(odd: Any) -> None:
    forwarded = Forwarded()
    ask(forwarded, odd)
    assert forwarded.question == ""
    assert answered(forwarded, None)


def test_an_answer_is_for_one_question_and_for_that_once() -> None:
    forwarded = Forwarded()
    assert not answered(forwarded, "never asked")
    ask(forwarded, "one")
    assert not answered(forwarded, "other")
    assert forwarded.question == "one"
    assert answered(forwarded, "one")
    assert forwarded.question is None
    assert not answered(forwarded, "one")
    ask(forwarded, "two")
    assert not answered(forwarded, "one")
    assert answered(forwarded, "two")


def test_an_answer_comes_too_late_when_what_asked_has_ended() -> None:
    forwarded = Forwarded()
    ask(forwarded, "one")
    forwarded.note_question("shell", message("complete_reply", parent_id="another"))
    forwarded.note_question("iopub", message("stream", parent_id="cell"))
    assert answered(forwarded, "one")
    ask(forwarded, "two")
    forwarded.note_question("shell", message("execute_reply", parent_id="cell"))
    assert not answered(forwarded, "two")
    ask(forwarded, "three")
    forwarded.kernel_ended()
    assert not answered(forwarded, "three")


def test_an_answer_that_does_not_say_to_what_is_passed_on() -> None:
    """As an older gateway sends it."""
    forwarded = Forwarded()
    assert answered(forwarded, None)
    ask(forwarded, "one")
    assert answered(forwarded, None)
