"""Docker's events, from an engine whose stream the test writes: how containers ended, and what is no event."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from sessions.model import GatewayId, KernelId
from sessions.ports import Fate
from sessions.provisioners.docker import events
from sessions.provisioners.docker.container import KERNEL_LABEL
from sessions.provisioners.docker.events import ContainerEvents

PATIENCE_S = 30.0

MALFORMED = {
    "no JSON": b"{nonsense\n",
    "no text": b"\xff\xfe\n",
    "no object": b"[1, 2]\n",
    "a number": b"7\n",
    "no time": b'{"Action": "die", "Actor": {"Attributes": {}}}\n',
    "a time that is no number": b'{"timeNano": "soon", "Action": "die", "Actor": {"Attributes": {}}}\n',
    "a time beyond all numbers": b'{"timeNano": 1' + b"0" * 400 + b', "Action": "die"}\n',
    "a time that never is": b'{"timeNano": NaN, "Action": "oom", "Actor": {"Attributes": {}}}\n',
    "no actor": b'{"timeNano": 1, "Action": "die"}\n',
    "attributes that are none": b'{"timeNano": 1, "Action": "die", "Actor": {"Attributes": null}}\n',
    "an exit code that is no number": b'{"timeNano": 1, "Action": "die", "Actor": {"Attributes": {"exitCode": "?"}}}\n',
    "deep": b"[" * 100_000 + b"\n",
    "endless": b"x" * (3 << 20) + b"\n",
    "nothing": b"\n\r\n",
}


def death(kernel_id: str, exit_code: int, action: str = "die") -> bytes:
    attributes = {KERNEL_LABEL: kernel_id, "exitCode": str(exit_code)}
    event = {"timeNano": 1_700_000_000_000_000_000, "Action": action, "Actor": {"Attributes": attributes}}
    return json.dumps(event).encode() + b"\n"


class Stream:
    """One answer of the engine: pieces of text, and then its end, or an error."""

    def __init__(self, *pieces: bytes | Exception | None) -> None:
        self.pieces: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        for piece in pieces:
            self.pieces.put(piece)

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self.pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def close(self) -> None:
        self.pieces.put(None)


class Engine:
    """Gives out its streams, one at each call; then silence."""

    def __init__(self, *streams: Stream) -> None:
        self.streams = list(streams)
        self.asked: list[str] = []

    def events(self, *, since: str, **_: Any) -> Stream:
        self.asked.append(since)
        if not self.streams:
            raise OSError("nobody answers")
        return self.streams.pop(0)


@pytest.fixture
def listen(request: pytest.FixtureRequest) -> Any:
    def start(*streams: Stream) -> ContainerEvents:
        engine = Engine(*streams)
        listening = ContainerEvents(lambda: engine, GatewayId("g"))  # type: ignore[arg-type,return-value]
        listening.start()
        request.addfinalizer(listening.close)
        return listening

    return start


@pytest.mark.parametrize("malformed", MALFORMED)
def test_what_is_no_event_does_not_keep_the_next_one_from_being_heard(listen: Any, malformed: str) -> None:
    with structlog.testing.capture_logs() as logs:
        listening = listen(Stream(MALFORMED[malformed], death("k", 3)))
        assert listening.fate(KernelId("k"), PATIENCE_S) == Fate(exit_code=3, oom=False)
    told = {entry["event"] for entry in logs}
    assert told == (set() if malformed == "nothing" else {"engine_event_malformed"})
    assert all(len(str(entry)) < 1000 for entry in logs)


def test_an_event_may_come_in_pieces_and_several_in_one(listen: Any) -> None:
    text = death("one", 1) + death("two", 2, "oom") + death("two", 137)
    listening = listen(
        Stream(*(text[index : index + 7] for index in range(0, len(text), 7)), death("a", 4) + death("b", 5))
    )
    assert listening.fate(KernelId("b"), PATIENCE_S) == Fate(exit_code=5, oom=False)
    assert listening.fate(KernelId("a")) == Fate(exit_code=4, oom=False)
    assert listening.fate(KernelId("two")) == Fate(exit_code=137, oom=True)


@pytest.mark.parametrize("error", [OSError("cut"), RuntimeError("docker-py could not parse it"), KeyError("x")])
def test_a_stream_that_breaks_in_whatever_way_is_opened_again(
    listen: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(events, "_RETRY_S", (0.01,))
    listening = listen(Stream(death("k", 1), error), Stream(death("k", 2)[:20], None), Stream(death("next", 2)))
    assert listening.fate(KernelId("next"), PATIENCE_S) == Fate(exit_code=2, oom=False)
    assert listening.fate(KernelId("k")) == Fate(exit_code=1, oom=False)
