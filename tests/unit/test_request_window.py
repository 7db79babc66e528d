"""One client's requests on one channel: how many are with the kernel, and what becomes of the others."""

from __future__ import annotations

import pytest

from sessions.errors import TooManyRequests
from sessions.jupyter.request_window import MAX_UNANSWERED, MAX_WAITING, MAX_WAITING_BYTES, RequestWindow


class Flood:
    def __init__(self) -> None:
        self.window = RequestWindow()
        self.gone: list[int] = []

    def ask(self, number: int, size_bytes: int = 1) -> None:
        self.window.add(str(number), size_bytes, lambda: self.gone.append(number))


@pytest.fixture
def flood() -> Flood:
    flood = Flood()
    for number in range(MAX_UNANSWERED):
        flood.ask(number)
    return flood


def test_so_many_requests_go_at_once_and_the_next_when_one_is_answered(flood: Flood) -> None:
    flood.ask(64)
    flood.ask(65)
    assert flood.gone == [*range(64)]
    flood.window.answered("7")
    assert flood.gone == [*range(65)]
    flood.window.answered("7")  # once more, or somebody else's: nothing changes
    flood.window.answered("nobody's")
    assert flood.gone == [*range(65)]
    flood.window.answered("0")
    assert flood.gone == [*range(66)]


def test_more_than_may_wait_are_refused(flood: Flood) -> None:
    for number in range(64, 64 + MAX_WAITING):
        flood.ask(number)
    with pytest.raises(TooManyRequests):
        flood.ask(-1)
    flood.window.answered("0")
    flood.ask(-1)


def test_so_are_more_bytes_than_may_wait_but_for_one_message_however_large(flood: Flood) -> None:
    flood.ask(64, MAX_WAITING_BYTES + 1)
    with pytest.raises(TooManyRequests):
        flood.ask(65)
    flood.window.answered("0")
    flood.ask(65, MAX_WAITING_BYTES)
    assert flood.gone == [*range(65)]
    flood.window.answered("1")
    flood.ask(66)
    flood.ask(67, MAX_WAITING_BYTES - 1)


def test_what_waited_for_a_kernel_that_has_gone_is_forgotten_and_the_next_one_is_asked_at_once(flood: Flood) -> None:
    flood.ask(64, MAX_WAITING_BYTES)
    flood.window.clear()
    assert flood.gone == [*range(64)]
    flood.ask(65, MAX_WAITING_BYTES)
    assert flood.gone == [*range(64), 65]
    assert repr(flood.window) == "<RequestWindow 1 unanswered, 0 wait>"
