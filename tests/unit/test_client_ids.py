"""The ids that a kernel sees: clients' own, and never one that stands for two requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kernel_image.client_ids import MOST, ClientIds
from kernel_image.protocol import CLIENT_ID


def sent(ids: ClientIds, ours: str, theirs: Any, channel: str = "shell") -> str:
    """The msg_id under which the kernel gets a request."""
    header = json.dumps({"msg_id": ours, "msg_type": "comm_msg", CLIENT_ID: theirs, "session": "s"}).encode()
    parts = ids.to_kernel(channel, [header, b"{}", b"{}", b'{"data": 1}', b"buffer"])
    assert parts[1:] == [b"{}", b"{}", b'{"data": 1}', b"buffer"]
    seen = json.loads(parts[0])
    assert seen == {"msg_id": seen["msg_id"], "msg_type": "comm_msg", "session": "s"}
    return str(seen["msg_id"])


def message(parent_id: Any, msg_type: str = "stream", content: Any = None) -> list[bytes]:
    header = json.dumps({"msg_id": "m", "msg_type": msg_type}).encode()
    parent = json.dumps({"msg_id": parent_id, "session": "s"}).encode()
    return [header, parent, b"{}", json.dumps(content or {}).encode()]


def parent_of(ids: ClientIds, parent_id: Any) -> Any:
    parts = message(parent_id)
    translated = ids.from_kernel(parts)
    assert (translated[0], translated[2:]) == (parts[0], parts[2:])
    parent = json.loads(translated[1])
    assert parent["session"] == "s"
    return parent["msg_id"]


def answer(ids: ClientIds, parent_id: str) -> None:
    ids.note_answered("iopub", message(parent_id, "status", {"execution_state": "idle"}))


def test_the_kernel_sees_the_clients_id_and_everybody_else_ours() -> None:
    ids = ClientIds()
    assert sent(ids, "run.1.0123abcd", "theirs") == "theirs"
    assert parent_of(ids, "theirs") == "run.1.0123abcd"
    answer(ids, "theirs")
    assert parent_of(ids, "theirs") == "run.1.0123abcd", "output may come late"
    assert parent_of(ids, "another") == "another"


def test_a_request_without_a_clients_id_stays_as_it_is() -> None:
    parts = [b'{"msg_id": "a", "msg_type": "execute_request"}', b"{}", b"{}", b"{}"]
    assert ClientIds().to_kernel("shell", parts) is parts


def test_an_id_that_an_unanswered_request_has_is_not_given_to_another() -> None:
    ids = ClientIds()
    assert sent(ids, "first", "same") == "same"
    assert sent(ids, "second", "same") == "second"
    assert (parent_of(ids, "same"), parent_of(ids, "second")) == ("first", "second")
    answer(ids, "second")
    assert sent(ids, "third", "same") == "third"
    answer(ids, "same")
    assert sent(ids, "fourth", "same") == "same"
    assert parent_of(ids, "same") == "fourth"


def test_an_id_of_ours_that_the_kernel_has_seen_is_not_given_to_another() -> None:
    """Code can tell it to whoever it likes, and widgets put it into their state."""
    ids = ClientIds()
    assert sent(ids, "ours", "ü") == "ours"
    assert sent(ids, "another", "ours") == "another"
    assert (parent_of(ids, "ours"), parent_of(ids, "another")) == ("ours", "another")
    answer(ids, "ours")
    assert sent(ids, "third", "ours") == "ours"


@pytest.mark.parametrize(
    "theirs",
    ["", "x" * 129, "a\nb", "ü", "\ud800", "2026-01-01T00:00:00Z", "other-run.12.0123abcd", None, 7, [], {"a": 1}],
)
def test_an_odd_id_is_not_used(theirs: Any) -> None:
    ids = ClientIds()
    assert sent(ids, "ours", theirs) == "ours"
    assert parent_of(ids, theirs) == theirs


def test_an_answer_to_a_question_has_its_clients_id_and_is_not_kept() -> None:
    ids = ClientIds()
    assert sent(ids, "ours", "theirs", "stdin") == "theirs"
    assert len(ids) == 0


def test_the_ids_are_bounded_and_those_of_unanswered_requests_are_never_forgotten() -> None:
    ids = ClientIds()
    sent(ids, "long run", "running")
    for number in range(2 * MOST):
        assert sent(ids, f"ours-{number}", f"theirs-{number}") == f"theirs-{number}"
        answer(ids, f"theirs-{number}")
    assert len(ids) == MOST
    assert parent_of(ids, "running") == "long run"
    assert parent_of(ids, f"theirs-{2 * MOST - 1}") == f"ours-{2 * MOST - 1}"
    ids = ClientIds()
    for number in range(MOST):
        sent(ids, f"ours-{number}", f"theirs-{number}")
    assert sent(ids, "one more", "theirs") == "one more"
    assert parent_of(ids, "theirs-0") == "ours-0"


def test_the_next_kernel_process_knows_no_ids() -> None:
    ids = ClientIds()
    sent(ids, "ours", "theirs")
    assert parent_of(ids, "theirs") == "ours"
    ids.clear()
    assert parent_of(ids, "theirs") == "theirs"


@pytest.mark.parametrize("parent", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"msg_id": {}}', b"{}"])
def test_a_parent_that_is_none_is_passed_on(parent: bytes) -> None:
    ids = ClientIds()
    sent(ids, "ours", "theirs")
    parts = [b'{"msg_type": "status"}', parent, b"{}", b'{"execution_state": "idle"}']
    assert ids.from_kernel(parts) == parts
    ids.note_answered("iopub", parts)


def test_a_long_parent_is_translated_too() -> None:
    ids = ClientIds()
    sent(ids, "ours", "theirs")
    parts = [b"{}", json.dumps({"msg_id": "theirs", "x": "y" * 100_000}).encode(), b"{}", b"{}"]
    assert json.loads(ids.from_kernel(parts)[1])["msg_id"] == "ours"
