"""Listens to Docker's events, since a container that removes itself can no longer be asked how it ended.

One thread, started by the first use and ended by `close`. It outlives a restart of the engine.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import structlog
from docker.api.client import APIClient
from docker.types import CancellableStream

from sessions.model import GatewayId, KernelId
from sessions.ports import Fate
from sessions.provisioners.docker.container import GATEWAY_LABEL, KERNEL_LABEL
from sessions.provisioners.docker.engine import SILENCE

_REMEMBERED = 2_048
_RETRY_S = (0.1, 0.5, 1.0, 2.0, 5.0)
_CLOSE_TIMEOUT_S = 5.0
_LONGEST_LINE_BYTES = 1 << 20
_MOST_LOGGED = 200

log = structlog.get_logger()


class ContainerEvents:
    """Remembers the fate of this gateway's containers, the latest 2,048 of them.

    Its mutable state is `_fates`, `_short_of_memory` and `_stream`, all behind `_changed`.
    """

    def __init__(self, open_client: Callable[[], APIClient], gateway_id: GatewayId) -> None:
        self._open_client = open_client
        self._filters = {"type": "container", "event": ["die", "oom"], "label": f"{GATEWAY_LABEL}={gateway_id}"}
        self._changed = threading.Condition()
        self._fates: OrderedDict[KernelId, Fate] = OrderedDict()
        self._short_of_memory: set[KernelId] = set()
        self._stream: CancellableStream[Any] | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen, unless that has begun already. Events from now on are not missed."""
        with self._changed:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(
                    target=self._listen, args=(_engine_time(time.time()),), name="docker-events", daemon=True
                )
                self._thread.start()

    def fate(self, kernel_id: KernelId, wait_s: float = 0.0) -> Fate | None:
        """How this kernel's container ended, waiting up to `wait_s` for the event. Blocks that long."""
        with self._changed:
            self._changed.wait_for(lambda: kernel_id in self._fates or self._closed.is_set(), wait_s)
            return self._fates.get(kernel_id)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
            if self._stream is not None:
                _disconnect(self._stream)
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT_S)

    def _listen(self, since: str) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                stream = self._open_client().events(since=since, filters=self._filters, decode=False)  # type: ignore[call-overload]
                with self._changed:
                    self._stream = stream
                    if self._closed.is_set():
                        _disconnect(stream)
                for line in _lines(stream):
                    failures = 0
                    since = self._handle(line) or since
            except SILENCE:
                pass
            except Exception:
                log.exception("engine_events_failed", consequence="the engine is asked for them again")
            self._closed.wait(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
            failures += 1

    def _handle(self, line: bytes) -> str | None:
        """Take in one event; returns when it was. What is no event is logged, and those behind it are taken in."""
        at = None
        try:
            event = json.loads(line)
            at = _engine_time(int(event["timeNano"]) / 1e9)
            self._take(event)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one event, the next one may be right
            log.warning(
                "engine_event_malformed", event_text=line[:_MOST_LOGGED].decode("utf-8", "replace"), why=repr(error)
            )
        return at

    def _take(self, event: Mapping[str, Any]) -> None:
        attributes = event["Actor"]["Attributes"]
        kernel_id = KernelId(attributes.get(KERNEL_LABEL, ""))
        with self._changed:
            if event["Action"] == "oom":
                self._short_of_memory.add(kernel_id)
                return
            oom = kernel_id in self._short_of_memory
            self._short_of_memory.discard(kernel_id)
            self._fates[kernel_id] = Fate(exit_code=int(attributes.get("exitCode", 0)), oom=oom)
            while len(self._fates) > _REMEMBERED:
                self._fates.popitem(last=False)
            self._changed.notify_all()


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream, each of which is an event. docker-py would wait for the end of one that is no JSON."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from filter(bytes.strip, lines)
        if len(rest) > _LONGEST_LINE_BYTES:
            yield rest
            rest = b""


def _engine_time(seconds: float) -> str:
    """Docker takes `seconds.nanoseconds`; whole seconds would lose or repeat events."""
    return f"{seconds:.9f}"


def _disconnect(stream: CancellableStream[Any]) -> None:
    # docker-py reaches for the socket below the response, which may be gone already.
    with suppress(*SILENCE, AttributeError):
        stream.close()
