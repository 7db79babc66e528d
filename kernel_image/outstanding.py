"""The execute_requests that the kernel has not finished: where each run ends, what it used and which files it made.

A request is finished when its execute_reply and its `idle` have both passed. All kernel messages go through here on
their way to the relay.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from kernel_image import protocol
from kernel_image.accounting import Meter, Meterage, Reading
from kernel_image.artifact_sender import ArtifactSender, not_there
from kernel_image.artifacts import Found, WorkingDirectory
from kernel_image.between_runs import BetweenRuns
from kernel_image.coalescing import Coalescer
from kernel_image.kernel_messages import (
    JSON_ERRORS,
    asks_exit,
    cut_stream,
    is_idle,
    is_outcome,
    note_sent,
    shorten_outcome,
)
from kernel_image.missing_replies import MissingReplies, missing_idle, missing_reply
from kernel_image.relay import Relay
from kernel_image.safe_directory import is_path_of_file
from kernel_image.sandbox_log import log_event

_REMEMBERED = 256
_SAMPLE_S = 0.2
_MAX_STATUS_BYTES = 64 << 10
_END_BYTES = 1 << 20
_MAX_OUTCOMES = 4
_SHARE_KEPT_FROM_STREAMS = 16
"""Of a run's messages, one part in so many is for what is not printed: a flood must leave room for the result."""
_MOST_EARLY = 64
_BEGIN_S = 1.0
"""What the kernel has for beginning a request that is to be interrupted; something else may keep it busy."""


class _Request:
    """One execute_request that has not finished."""

    def __init__(self, msg_id: str, header: bytes, *, wants_artifacts: bool, fetch: Sequence[str]) -> None:
        self.msg_id = msg_id
        self.header = header
        self.wants_artifacts = wants_artifacts
        self.fetch = fetch
        self.meterage: Meterage | None = None
        self.has_begun = False
        self.early: list[tuple[str, list[bytes]]] = []
        self.on_begin: Callable[[], None] | None = None
        self.replied = self.idle = False
        self.relayed_bytes = 0
        self.dropped_bytes = self.dropped_frames = 0
        self.outcomes = 0


class OutstandingRequests:
    """Passes the kernel's messages to the relay and tells the end of each request.

    Its state: the outstanding requests in order, and the ids of the last finished and rejected ones. `ask` asks the
    kernel something, see MissingReplies.
    """

    def __init__(
        self,
        settings: protocol.SupervisorSettings,
        relay: Relay,
        meter: Meter,
        work: WorkingDirectory,
        ask: Callable[[], str | None],
    ) -> None:
        self._settings = settings
        self._relay = relay
        self._meter = meter
        self._work = work
        self._artifacts = ArtifactSender(settings, relay, work)
        self._coalescer = Coalescer[_Request](lambda parts, request: self._put_now("iopub", parts, "stream", request))
        self._outstanding: dict[str, _Request] = {}
        self._missing = MissingReplies(ask, self._make_missing)
        self._between = BetweenRuns(meter, lambda usage: relay.put_control(protocol.USAGE, msg_id=None, usage=usage))
        self._sampler: asyncio.TimerHandle | None = None
        self._finishing: set[asyncio.Task[None]] = set()
        self._stops: dict[str, asyncio.Event] = {}
        self.finished: deque[str] = deque(maxlen=_REMEMBERED)
        self._rejected: deque[str] = deque(maxlen=_REMEMBERED)
        self._last_header = b"{}"

    def __contains__(self, msg_id: object) -> bool:
        return msg_id in self._outstanding

    @property
    def msg_ids(self) -> list[str]:
        """Those of the outstanding requests, in order."""
        return list(self._outstanding)

    @property
    def running(self) -> str | None:
        """The msg_id of the oldest outstanding request."""
        return next(iter(self._outstanding), None)

    def _oldest(self) -> _Request | None:
        return next(iter(self._outstanding.values()), None)

    def accept(self, parts: list[bytes], accepting: int | None) -> bool:
        """Register a shell request from the gateway. False when it must not go to the kernel, or not again.

        `accepting` is the generation that accepts requests now, None when no kernel process does. An execute_request is
        rejected at once, and never run later, without one, or when it is meant for another generation.
        """
        try:
            header = json.loads(parts[0])
            msg_id, msg_type = header["msg_id"], header["msg_type"]
            options = json.loads(parts[2]).get("cellblock", {}) if parts[2] != b"{}" else {}
            wants_artifacts = bool(options.get("artifacts", True))
            fetch = [path for path in options.get("fetch", ()) if is_path_of_file(path)]
            is_accepted = accepting is not None and options.get("generation", accepting) == accepting
        except JSON_ERRORS:
            return False
        if msg_type != "execute_request":
            return accepting is not None
        known = (self._outstanding, self.finished, self._rejected)
        if not isinstance(msg_id, str) or any(msg_id in ids for ids in known):
            return False
        if is_accepted:
            log_event("request_accepted", msg_id=msg_id)
            self._outstanding[msg_id] = _Request(msg_id, parts[0], wants_artifacts=wants_artifacts, fetch=fetch)
        else:
            log_event("request_rejected", msg_id=msg_id)
            self._rejected.append(msg_id)
            self._relay.put_control(protocol.REJECTED, msg_id=msg_id)
        return is_accepted

    def fail(self, msg_id: str | None, why: str) -> None:
        """Tell that a request cannot be handled, or some other frame; it does not come again."""
        if msg_id is not None:
            self._outstanding.pop(msg_id, None)
            self.finished.append(msg_id)
        self._relay.put_control(protocol.FAILED, msg_id=msg_id, why=why)

    def measure(self) -> None:
        """Begin to measure the oldest request, whose turn it is, unless that has begun."""
        request = self._oldest()
        if request is not None and request.meterage is None:
            first = self._meter.read()
            self._between.end(first)
            request.meterage = Meterage(first)
            if self._sampler is None:
                self._schedule_sample()

    def once_begun(self, msg_id: str, act: Callable[[], None]) -> None:
        """Call `act` when the kernel runs a request, or does not begin it in time; not when it has ended before.

        A kernel that is interrupted before loses the interrupt, or the request.
        """
        request = self._outstanding[msg_id]
        if request.has_begun:
            act()
            return
        request.on_begin = act
        asyncio.get_running_loop().call_later(_BEGIN_S, self._begin, request)

    def _begin(self, request: _Request) -> None:
        request.has_begun = True
        self._put_early(request)
        act, request.on_begin = request.on_begin, None
        if act is not None and request.msg_id in self._outstanding:
            act()

    def _put_early(self, request: _Request) -> None:
        early, request.early = request.early, []
        for msg_type, parts in early:
            self._put("iopub", parts, msg_type, request)

    def relay(self, channel: str, parts: list[bytes], sent_bytes_by_stream: dict[str, int]) -> bool:
        """Pass a kernel's message on, within bounds; and note in `sent_bytes_by_stream` how much has been sent of each.

        Returns whether it says that the kernel will end by itself.
        """
        try:
            msg_type = str(json.loads(parts[0])["msg_type"])
            parent = str(json.loads(parts[1]).get("msg_id", "")) if parts[1] != b"{}" else ""
        except JSON_ERRORS:
            return False
        if self._missing.takes(channel, parent):
            return False
        request = self._outstanding.get(parent)
        if msg_type == "stream" and parts[2] != b"{}":
            note_sent(parts[2], sent_bytes_by_stream)
        self._put(channel, parts, msg_type, request)
        if request is None:
            return False
        leaves = False
        if channel == "shell" and msg_type == "execute_reply":
            request.replied = True
            leaves = asks_exit(parts[3])
        elif channel == "iopub" and msg_type == "status" and is_idle(parts[3]):
            request.idle = True
        elif channel == "iopub" and msg_type == "execute_input":
            self._begin(request)
        if request.replied and request.idle:
            self._finish(request)
        elif request.replied or request.idle:
            self._missing.expect(parent, lambda: parent in self._outstanding)
        return leaves

    def _make_missing(self, msg_id: str, channel: str) -> None:
        """End a request in the kernel's place, if the other half of its end has come, and this one has not."""
        request = self._outstanding.get(msg_id)
        if request is None:
            return
        if channel == "shell" and request.idle:
            log_event("reply_missing", msg_id=msg_id)
            self.relay("shell", missing_reply(request.header), {})
        elif channel == "iopub" and request.replied:
            log_event("idle_missing", msg_id=msg_id)
            self.relay("iopub", missing_idle(request.header), {})

    def publish(self, msg_type: str, content: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Pass on what came through a kernel's pipes, as a message that answers the request at work, or the last."""
        request = self._oldest()
        header = request.header if request is not None else self._last_header
        own = {"msg_id": secrets.token_hex(16), "msg_type": msg_type, "version": "5.4"}
        # ASCII, so that lone surrogates pass as escapes.
        parts = [json.dumps(own).encode(), header, json.dumps(metadata).encode(), json.dumps(content).encode()]
        if request is not None and not request.has_begun and len(request.early) < _MOST_EARLY:
            request.early.append((msg_type, parts))  # `execute_input` is still on its way
        else:
            self._put("iopub", parts, msg_type, request)

    def put_lost_output(self, lost: dict[str, tuple[str, int]]) -> None:
        """Send the output that the dead kernel had not sent, as the running request's."""
        request = self._oldest()
        if request is None:
            return
        for stream, (text, gone_bytes) in lost.items():
            header = {"msg_id": f"{request.msg_id}-{stream}", "msg_type": "stream", "version": "5.4"}
            content = {"name": stream, "text": text}
            request.dropped_bytes += gone_bytes
            parts = [json.dumps(header).encode(), request.header, b"{}", json.dumps(content).encode()]
            self._put("iopub", parts, "stream", request)

    async def fail_all(self, cause: str, *, exit_code: int | None, signal_number: int | None) -> None:
        """Send `died`, behind what the running request made and used until then.

        The `done` of requests that had finished before goes first, however long their files take.
        """
        if self._finishing:
            await asyncio.wait(self._finishing)
        running = self._oldest()
        if running is not None:
            self._put_early(running)
        self._coalescer.flush()
        usage = None
        skipped: list[dict[str, Any]] = []
        last = self._meter.read()
        if running is not None:
            usage = _usage(running, last)
            found, missing, complete = self._files_of(running)
            skipped = await self._send_files(running, found, usage, missing=missing, complete=complete)
            self._put_gap(running)
        never_run = self._behind_unanswered()
        self._missing.forget()
        self.finished.extend(self._outstanding)
        self._outstanding.clear()
        if running is not None:
            self._between.begin(last)
        self._relay.put_control(
            protocol.DIED,
            msg_id=running.msg_id if running else None,
            never_run=never_run,
            cause=cause,
            exit_code=exit_code,
            signal=signal_number,
            usage=usage,
            skipped=skipped,
        )

    def _behind_unanswered(self) -> list[str]:
        """The requests that cannot have begun. Behind one that was answered, its `idle` lost, the next may have."""
        requests = iter(self._outstanding.values())
        for request in requests:
            if not request.replied:
                break
        return [request.msg_id for request in requests]

    def _put(self, channel: str, parts: list[bytes], msg_type: str, request: _Request | None) -> None:
        """Hand a message to the relay; small output in quick succession is joined first."""
        is_stream = channel == "iopub" and msg_type == "stream"
        if is_stream and request is not None and self._coalescer.add(parts, request):
            return
        self._coalescer.flush()
        self._put_now(channel, parts, msg_type, request)

    def _put_now(self, channel: str, parts: list[bytes], msg_type: str, request: _Request | None) -> None:
        """Hand a message to the relay unless it is too large or its run has sent too much."""
        size_bytes = sum(map(len, parts))
        # Anything a kernel publishes can be a flood; only the messages that end a run must never be missing.
        is_iopub = channel == "iopub"
        is_output = request is None or (is_iopub and (msg_type != "status" or size_bytes > _MAX_STATUS_BYTES))
        settings = self._settings
        if size_bytes > settings.max_message_bytes and msg_type == "stream":
            parts = cut_stream(parts, settings.max_message_bytes // 8)
            if request is not None:
                request.dropped_bytes += size_bytes - sum(map(len, parts))
            size_bytes = sum(map(len, parts))
        extra_bytes = 0 if is_output else _END_BYTES
        if is_output and msg_type == "stream":
            extra_bytes = -settings.relay_bytes // _SHARE_KEPT_FROM_STREAMS
        fits = self._fits(parts, size_bytes, request, extra_bytes=extra_bytes)
        if not fits and request is not None and is_outcome(channel, msg_type) and request.outcomes < _MAX_OUTCOMES:
            # Whether the code raised must be known, however large its traceback is.
            request.outcomes += 1
            short = shorten_outcome(parts)
            short_bytes = sum(map(len, short))
            if short_bytes <= _END_BYTES:  # the headers are the kernel's, too
                request.dropped_bytes += size_bytes - short_bytes
                parts, size_bytes, is_output, fits = short, short_bytes, False, True
        if fits:
            self._relay.put_message(channel, parts, droppable=is_output)
        if request is not None:
            if fits:
                request.relayed_bytes += size_bytes
            else:
                request.dropped_bytes += size_bytes
                request.dropped_frames += 1

    def _fits(self, parts: list[bytes], size_bytes: int, request: _Request | None, *, extra_bytes: int) -> bool:
        """Whether the gateway accepts a message of this size, and its run has not sent too much."""
        relayed_bytes = request.relayed_bytes if request is not None else 0
        return (
            size_bytes <= self._settings.max_message_bytes
            and len(parts) <= protocol.MAX_PARTS
            and relayed_bytes + size_bytes <= self._settings.relay_bytes + extra_bytes
        )

    def _finish(self, request: _Request) -> None:
        """The request has ended: send the files that it made, then `done` with what it used."""
        self._put_early(request)
        last = self._meter.read()
        usage = _usage(request, last)
        del self._outstanding[request.msg_id]
        self._last_header = request.header
        self.finished.append(request.msg_id)
        if not self._outstanding:
            self._between.begin(last)
        self.measure()
        self._put_gap(request)
        found, missing, complete = self._files_of(request)
        if not found and complete:
            self._put_done(request, usage, not_there(missing))
            return
        sending = self._send_files(request, found, usage, missing=missing, complete=complete)
        task = asyncio.ensure_future(self._put_artifacts_and_done(request, usage, sending))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    def _files_of(self, request: _Request) -> tuple[list[Found], list[str], bool]:
        """The files to send, those that were to be fetched and are not there, and whether all could be looked at."""
        if not request.wants_artifacts:
            return [], [], True
        return self._work.files_of_run(request.fetch)

    async def _put_artifacts_and_done(
        self, request: _Request, usage: dict[str, Any], sending: Awaitable[list[dict[str, Any]]]
    ) -> None:
        self._put_done(request, usage, await sending)

    async def _send_files(
        self, request: _Request, found: list[Found], usage: dict[str, Any], *, missing: Sequence[str], complete: bool
    ) -> list[dict[str, Any]]:
        """Send the files, until they are through or `stop_files` is called; returns what was skipped or is missing.

        What the run used is told first: the container may not live until the last file has come.
        """
        if found:
            self._relay.put_control(protocol.USAGE, msg_id=request.msg_id, usage=usage)
        stop = self._stops[request.msg_id] = asyncio.Event()
        try:
            return await self._artifacts.send(request.header, found, stop, missing=missing, complete=complete)
        finally:
            del self._stops[request.msg_id]

    def stop_files(self, msg_id: Any) -> None:
        """Send no more files of this request, whose time for them is over, and tell its end."""
        if (stop := self._stops.get(msg_id)) is not None:
            stop.set()

    def _put_done(self, request: _Request, usage: dict[str, Any], skipped: list[dict[str, Any]]) -> None:
        log_event("request_done", msg_id=request.msg_id)
        self._relay.put_control(protocol.DONE, msg_id=request.msg_id, usage=usage, skipped=skipped)

    def _put_gap(self, request: _Request) -> None:
        if request.dropped_bytes:
            self._relay.put_control(
                protocol.GAP,
                what="output",
                msg_id=request.msg_id,
                dropped_bytes=request.dropped_bytes,
                dropped_frames=request.dropped_frames,
            )

    def _schedule_sample(self) -> None:
        self._sampler = asyncio.get_running_loop().call_later(_SAMPLE_S, self._sample)

    def _sample(self) -> None:
        """Sample the memory while something runs."""
        self._sampler = None
        request = self._oldest()
        if request is not None:
            if request.meterage is not None:
                request.meterage.sample(self._meter.read())
            self._schedule_sample()


def _usage(request: _Request, last: Reading) -> dict[str, Any]:
    return (request.meterage or Meterage(last)).finish(last)
