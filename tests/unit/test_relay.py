"""What the relay sends after a new connection, to a gateway that acknowledges at a time of its own choosing."""

from __future__ import annotations

from typing import Any

import pytest

from kernel_image import protocol, relay
from kernel_image.relay import Relay

SETTINGS = protocol.SupervisorSettings("k", "c", "unix:/s", "/work", "/ipc", "/home")


class SlowConnection:
    """Takes frames and says that they are on their way; `flush` lets all of them arrive."""

    def __init__(self, spooled: Relay) -> None:
        self._spooled = spooled
        self.frames: list[str | bytes] = []
        self.unsent_bytes = 0

    def send(self, frame: str | bytes) -> None:
        self.frames.append(frame)
        self.unsent_bytes += len(frame)

    def flush(self) -> None:
        self.unsent_bytes = 0
        self._spooled._send_unsent()

    def numbers(self) -> list[int]:
        return [protocol.split_number(frame)[0] for frame in self.frames if isinstance(frame, bytes)]


@pytest.fixture
def spooled(monkeypatch: pytest.MonkeyPatch) -> Relay:
    """A relay that has ten frames to send, of which two fit on the way at a time."""
    monkeypatch.setattr(relay, "_UNFLUSHED_LIMIT_BYTES", 2000)
    spooled = Relay(SETTINGS, listener=None)  # type: ignore[arg-type] - nobody calls it here
    for _ in range(10):
        spooled.put_message("iopub", [b"{}", b"{}", b"{}", b"x" * 1000], droppable=True)
    return spooled


def connect(spooled: Relay, acknowledged: int) -> SlowConnection:
    connection = SlowConnection(spooled)
    spooled._connection = connection  # type: ignore[assignment]
    tell(spooled, protocol.WELCOME, acknowledged=acknowledged)
    return connection


def tell(spooled: Relay, op: str, **fields: Any) -> None:
    spooled._handle_frame(protocol.encode_control(op, **fields))


async def test_everything_not_acknowledged_is_sent_in_order(spooled: Relay) -> None:
    connection = connect(spooled, acknowledged=3)
    assert connection.numbers() == [4, 5]
    for _ in range(4):
        connection.flush()
    assert connection.numbers() == [4, 5, 6, 7, 8, 9, 10]


async def test_an_acknowledgement_of_what_was_sent_over_the_last_connection_does_not_stop_the_sending(
    spooled: Relay,
) -> None:
    before = connect(spooled, acknowledged=0)
    for _ in range(5):
        before.flush()
    assert before.numbers()[-1] == 10
    after = connect(spooled, acknowledged=0)
    tell(spooled, protocol.ACK, seq=6)
    after.flush()
    spooled.put_message("iopub", [b"{}"] * 4, droppable=True)
    for _ in range(4):
        after.flush()
    assert after.numbers() == [1, 2, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("op", [protocol.WELCOME, protocol.ACK])
async def test_an_acknowledgement_of_what_does_not_exist_yet_skips_nothing(spooled: Relay, op: str) -> None:
    connection = connect(spooled, acknowledged=0)
    tell(spooled, op, **{"acknowledged" if op == protocol.WELCOME else "seq": 100})
    connection.flush()
    spooled.put_message("iopub", [b"{}"] * 4, droppable=True)
    assert connection.numbers() == [1, 2, 11]


async def test_what_is_not_numbered_goes_out_at_once_or_never(spooled: Relay) -> None:
    spooled.send_unnumbered("nobody is there")
    connection = connect(spooled, acknowledged=10)
    spooled.send_unnumbered("now")
    assert connection.frames == ["now"]
    assert spooled._spool.next_seq == 11


class Failing:
    """A listener that cannot handle what begins with `x`."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.dropped: list[tuple[str | bytes, str]] = []

    def on_message(self, channel: str, parts: list[bytes]) -> None:
        if parts[3].startswith(b"x"):
            raise KeyError(channel)
        self.taken.append(parts[3])

    def on_dropped(self, frame: str | bytes, why: str) -> None:
        self.dropped.append((frame, why))


def framed(content: bytes) -> bytes:
    return protocol.encode_message("shell", [b"{}", b"{}", b"{}", content])


async def test_a_frame_that_fails_again_and_again_is_dropped_and_said() -> None:
    listener = Failing()
    poisoned = Relay(SETTINGS, listener)  # type: ignore[arg-type]
    for frame in (framed(b"x1"), b"nonsense", framed(b"x2"), '{"op": 5', "[]"):
        for _ in range(2):
            with pytest.raises(Exception, match=r".+"):
                poisoned._handle_or_drop(frame)
        poisoned._handle_or_drop(frame)
        poisoned._handle_or_drop(framed(b"next"))
    assert [frame for frame, _ in listener.dropped][:2] == [framed(b"x1"), b"nonsense"]
    assert listener.dropped[0][1] == "KeyError: 'shell'"
    assert (len(listener.dropped), len(listener.taken)) == (5, 5)


async def test_frames_that_fail_once_each_only_break_the_link() -> None:
    listener = Failing()
    poisoned = Relay(SETTINGS, listener)  # type: ignore[arg-type]
    for number in range(6):
        with pytest.raises(KeyError):
            poisoned._handle_or_drop(framed(b"x%d" % (number % 2)))
    assert listener.dropped == []
