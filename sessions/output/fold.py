"""Folds one run's Jupyter messages into events and a result, with every limit applied. Pure: no I/O.

Hostile code wrote the messages: types are checked where they are used, and what does not fit is dropped. How a MIME
bundle or a file becomes an artifact is in displays.py. After a crash, the next gateway rebuilds the fold from the
committed events and `state`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, assert_never

from kernel_image.protocol import MISSING
from sessions.inputs import MAX_FETCHED
from sessions.kernels.messages import Message
from sessions.model import (
    ArtifactKind,
    ArtifactRef,
    Batch,
    Event,
    EventType,
    ExceptionInfo,
    Result,
    RunId,
    RunStatus,
    SessionId,
    Usage,
)
from sessions.output import contents
from sessions.output.displays import Displays
from sessions.output.event_log import EventLog
from sessions.output.streams import OutputStreams
from sessions.output.tracebacks import Tracebacks, failing_line
from sessions.sanitize import cut_utf8, relative_path, well_formed
from sessions.settings import Limits

_MAX_NOTICES = 20
_MAX_PROMPT_BYTES = 4096
_STREAMS = {"stdout": EventType.STDOUT, "stderr": EventType.STDERR}


class RunFold:
    """One run, from its first message to its result.

    The mutable state: the output so far, the next batch of events, how the kernel said that the run ended, whether the
    code waits for input, and whether the `end` event was added.
    """

    def __init__(self, run_id: RunId, limits: Limits, session_id: SessionId | None = None) -> None:
        self.run_id = run_id
        self.session_id = session_id
        self.session_created = False
        self.session_lost = False
        self.leaves = False
        self.awaits_input = False
        self._limits = limits
        self._displays = Displays(limits)
        self._log = EventLog()
        self._output = OutputStreams(limits.output_bytes)
        self._tracebacks = Tracebacks(limits.output_bytes)
        self._execution_count: int | None = None
        self._exception: ExceptionInfo | None = None
        self._exit_status: str | None = None
        self._has_error_event = False
        self._is_exception_from_reply = False
        self._clear_pending = False
        self._notices: list[str] = []
        self._has_ended = False

    def __repr__(self) -> str:
        return f"<RunFold {self.run_id}: {self._log!r}>"

    @property
    def size_bytes(self) -> int:
        """How much output and results it has."""
        return 2 * self._limits.output_bytes - self._output.left_bytes - self._displays.left_bytes

    def handle_message(self, message: Message) -> None:
        """Fold one message."""
        was_pending, seq = self._clear_pending, self._log.next_seq
        self._fold(message)
        if was_pending and not self._clear_pending and seq == self._log.next_seq:
            # The message added no event, but it has cleared what was shown before.
            self._log.add(EventType.CLEAR, wait=False)

    def _fold(self, message: Message) -> None:
        match message.msg_type:
            case "stream":
                self._handle_stream(message.content)
            case "display_data" | "execute_result":
                self._handle_display(message.content, is_main_result=message.msg_type == "execute_result")
            case "update_display_data":
                self._handle_update(message.content)
            case "clear_output":
                self._handle_clear(wait=message.content.get("wait") is True)
            case "execute_input":
                self._execution_count = contents.execution_count(message.content)
                self._start()
            case "error":
                self._handle_error(message.content)
            case "execute_reply":
                self._handle_reply(message.content)
            case "input_request":
                self._handle_input_request(message.content)
            case "artifact":
                self._handle_file(message.content, message.buffers)

    def handle_gap(self, dropped_bytes: int) -> None:
        """Output was dropped on the way here."""
        self._output.dropped_bytes += max(0, dropped_bytes)

    def add_skipped(self, skipped: Sequence[Mapping[str, Any]]) -> None:
        """Files that the supervisor did not send; each has `path`, `bytes` and `why`."""
        missing = [item for item in skipped if item.get("why") == MISSING]
        for item in missing[:MAX_FETCHED]:
            path = relative_path(item.get("path")) or "a file"
            self._notices.append(f"[cellblock] {path} was not fetched: there is no file of this name\n")
        self._displays.skip([item for item in skipped if item.get("why") != MISSING])

    def notice(self, text: str) -> None:
        """Add a line of our own to the end of stderr."""
        if len(self._notices) < _MAX_NOTICES:
            self._notices.append(f"[cellblock] {text}\n")

    def drain(self) -> Batch:
        """The events and artifacts since the last call."""
        return self._log.drain()

    def has_pending(self) -> bool:
        """Whether `drain` would return anything."""
        return self._log.has_pending()

    def is_assembling(self) -> bool:
        """Whether a file has come in part: what has been taken of it is in no batch yet."""
        return self._displays.is_assembling()

    def ended_status(self) -> RunStatus:
        """What the kernel's own messages say about the end."""
        if self._exit_status is not None:
            return RunStatus.OK if self._exit_status == "ok" else RunStatus.ERROR
        return RunStatus.ERROR if self._exception is not None else RunStatus.OK

    def finish(self, status: RunStatus, reason: str | None, usage: Usage | None) -> Result:
        """The final answer, with the `truncated` and `end` events appended. Call it once.

        `reason` is the sentence for a status that the code's own traceback does not explain.
        """
        self._start()
        for text in self._displays.notices():
            self.notice(text)
        if dropped_bytes := self._output.dropped_bytes + self._tracebacks.dropped_bytes:
            limit = self._limits.output_bytes
            self.notice(f"output was cut: {dropped_bytes} bytes beyond the limit of {limit} were dropped")
            self._log.add(EventType.TRUNCATED, what="output", dropped_bytes=dropped_bytes)
        if self._log.dropped:
            self.notice(f"{self._log.dropped} changes to what was shown were not kept: there were too many")
            self._log.add(EventType.TRUNCATED, what="events", dropped_bytes=0)
        for what, dropped_bytes in self._displays.dropped().items():
            self._log.add(EventType.TRUNCATED, what=what, dropped_bytes=dropped_bytes)
        if self._notices:
            notices = "".join(self._notices)
            self._output.add(EventType.STDERR, notices)
            self._log.add_text(EventType.STDERR, notices)
        result = self.result(status, reason, usage)
        self._end(result)
        return result

    def finish_internal_error(self, reason: str) -> Result:
        """The result after a bug of ours, perhaps in this class: the output so far, and one `end` event."""
        self._start()
        result = Result(
            run_id=self.run_id,
            status=RunStatus.LOST,
            output=self._output.text(EventType.STDOUT),
            stderr=self._output.text(EventType.STDERR),
            error=reason,
            session_id=self.session_id,
            session_created=self.session_created,
            session_lost=self.session_lost,
            truncated=True,
        )
        self._end(result)
        return result

    def _end(self, result: Result) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._log.add(EventType.END, status=result.status.value, **_end_fields(result))

    # --- for another gateway to go on from ----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What the events do not say, JSON-ready. `resume` rebuilds the same fold from both."""
        unsaid = self._exception is not None and not self._has_error_event
        return {
            "execution_count": self._execution_count,
            "has_exception": self._exception is not None,
            "exception": self._exception.as_json() if self._exception is not None and unsaid else None,
            "exit_status": self._exit_status,
            "output": self._output.state(),
            "dropped_events": self._log.dropped,
            "traceback_bytes": [self._tracebacks.left_bytes, self._tracebacks.dropped_bytes],
            "leaves": self.leaves,
            "awaits_input": self.awaits_input,
            "session_created": self.session_created,
            "session_lost": self.session_lost,
            "collection": self._displays.state(),  # the keys are stored: they stay
        }

    def resume(self, events: Iterable[Event], state: Mapping[str, Any]) -> None:
        """Rebuild a fold from its events and its `state`. Call it first, or not at all."""
        self._execution_count = state.get("execution_count")
        for event in events:
            self._log.next_seq = event.seq + 1
            self._replay(event.type, event.fields)
        self._displays.resume(state.get("collection", {}))
        if (unsaid := state.get("exception")) is not None:
            self._exception = ExceptionInfo(**{**unsaid, "traceback": tuple(unsaid["traceback"])})
            self._has_error_event = False
        if not state.get("has_exception", True):  # `sys.exit(0)` has undone the error that an event has
            self._exception = None
        self._exit_status = state.get("exit_status")
        self._output.resume(state.get("output", {}))
        self._log.dropped = state.get("dropped_events", 0)
        left_and_dropped = state.get("traceback_bytes", [self._tracebacks.left_bytes, 0])
        self._tracebacks.left_bytes, self._tracebacks.dropped_bytes = left_and_dropped
        self.leaves, self.awaits_input = state.get("leaves", False), state.get("awaits_input", False)
        self.session_created = state.get("session_created", self.session_created)
        self.session_lost = state.get("session_lost", False)

    def _replay(self, type_: EventType, fields: Mapping[str, Any]) -> None:
        match type_:
            case EventType.STDOUT | EventType.STDERR:
                self._clear_if_pending()
                self._output.add(type_, fields["text"])
            case EventType.RESULT:
                self._clear_if_pending()
                self._displays.replay_shown(fields["data"], fields["display_id"])
            case EventType.UPDATE:
                self._displays.replay_update(fields["data"], fields["display_id"])
            case EventType.IMAGE | EventType.FILE:
                self._displays.replay_artifact(_ref(ArtifactKind(type_.value), fields))
            case EventType.CLEAR if fields["wait"]:
                self._clear_pending = True
            case EventType.CLEAR:
                self._clear()
            case EventType.ERROR:
                self._clear_if_pending()
                traceback = tuple(fields["traceback"])
                line = failing_line(traceback, self._execution_count)
                self._exception = ExceptionInfo(fields["name"], fields["value"], traceback, line)
                self._has_error_event = True
            case EventType.STARTED:
                self.session_created = fields.get("session_created", False)
            case EventType.INPUT_REQUEST | EventType.TRUNCATED | EventType.END:
                pass
            case _ as unreachable:
                assert_never(unreachable)

    # --- messages -----------------------------------------------------------------------------------------------------

    def _handle_stream(self, content: Mapping[str, Any]) -> None:
        stream, text = _STREAMS.get(str(content.get("name"))), content.get("text")
        if stream is None or not isinstance(text, str) or not text:
            return
        self._clear_if_pending()
        if kept := self._output.write(stream, text):
            self._start()
            self._log.add_text(stream, kept)

    def _handle_display(self, content: Mapping[str, Any], *, is_main_result: bool) -> None:
        self._clear_if_pending()
        self._start()
        display_id = contents.display_id(content)
        shown, artifacts = self._displays.show(content.get("data"), display_id)
        self._log.add_artifacts(artifacts)
        if shown:
            self._log.add(
                EventType.RESULT,
                data=shown,
                metadata=contents.metadata(content),
                display_id=display_id,
                is_main_result=is_main_result,
            )

    def _handle_update(self, content: Mapping[str, Any]) -> None:
        display_id = contents.display_id(content)
        if display_id is None or not self._displays.shows(display_id):
            return
        shown, artifacts = self._displays.update(content.get("data"), display_id)
        self._log.add_artifacts(artifacts)
        self._log.add(EventType.UPDATE, data=shown, display_id=display_id)

    def _handle_clear(self, *, wait: bool) -> None:
        self._start()
        self._log.add(EventType.CLEAR, wait=wait)
        if wait:
            self._clear_pending = True
        else:
            self._clear()

    def _clear_if_pending(self) -> None:
        if self._clear_pending:
            self._clear()

    def _clear(self) -> None:
        self._clear_pending = False
        self._displays.clear()

    def _handle_error(self, content: Mapping[str, Any]) -> None:
        self._clear_if_pending()
        exception = self._tracebacks.parse(content, self._execution_count)
        if exception is None:
            return
        if not self._is_exception_from_reply:  # which has overtaken this message then, on another socket
            self._outlive_exception()
        self._exception, self._has_error_event, self._is_exception_from_reply = exception, False, False
        if exception.name != "SystemExit":
            self._add_error_event(exception)
            if self._exit_status == "ok":  # which has overtaken this message, likewise
                self._outlive_exception()

    def _handle_reply(self, content: Mapping[str, Any]) -> None:
        self._execution_count = contents.execution_count(content) or self._execution_count
        self._exit_status = str(content.get("status"))
        if self._exit_status == "ok":
            self._outlive_exception()
        else:
            if self._exception is None:
                self._exception = self._tracebacks.parse(content, self._execution_count)
                self._is_exception_from_reply = self._exception is not None
            if self._exception is not None and self._exception.name == "SystemExit":
                self._leave(self._exception)
        payloads = content.get("payload")
        for payload in payloads[:10] if isinstance(payloads, list) else ():
            # https://jupyter-client.readthedocs.io/en/stable/messaging.html#payloads-deprecated
            if not isinstance(payload, dict):
                continue
            if payload.get("source") == "page":  # what `print?` shows
                self._handle_display({"data": contents.without_ansi(payload.get("data"))}, is_main_result=False)
            elif payload.get("source") == "ask_exit" and payload.get("keepkernel") is not True:
                self.leaves = True  # `exit()`: the kernel process ends now

    def _outlive_exception(self) -> None:
        """The code has gone on after an error that was shown (`%run`, a display that fails): it is standard error."""
        if self._exception is not None:
            text = "\n".join(self._exception.traceback).rstrip("\n") + "\n"
            self._exception = None
            self._handle_stream({"name": "stderr", "text": text})

    def _leave(self, exception: ExceptionInfo) -> None:
        """`sys.exit()` ends a run as it ends a script: None and 0 are success."""
        if exception.value in ("", "0", "None"):
            self._exit_status, self._exception = "ok", None
        else:
            self._add_error_event(exception)

    def _add_error_event(self, exception: ExceptionInfo) -> None:
        """The `error` event, which has all of the exception but for `line`."""
        self._start()
        if not self._has_error_event:
            self._clear_if_pending()
            traceback = list(exception.traceback)
            self._has_error_event = self._log.add(
                EventType.ERROR, name=exception.name, value=exception.value, traceback=traceback
            )

    def _handle_input_request(self, content: Mapping[str, Any]) -> None:
        prompt = content.get("prompt")
        kept = cut_utf8(well_formed(prompt), _MAX_PROMPT_BYTES) if isinstance(prompt, str) else ""
        self._start()
        self._log.add(EventType.INPUT_REQUEST, prompt=kept, password=content.get("password") is True)
        self.awaits_input = True  # a Jupyter client has been asked, even where there are too many events

    def _handle_file(self, content: Mapping[str, Any], buffers: tuple[bytes, ...]) -> None:
        self._start()
        artifact = self._displays.add_piece(content, buffers)
        if artifact is not None:
            self._log.add_artifacts([artifact])

    def _start(self) -> None:
        if self._log.next_seq == 1:
            session = {"session_id": self.session_id, "session_created": self.session_created}
            fields = session if self.session_id is not None else {}
            self._log.add(EventType.STARTED, execution_count=self._execution_count, **fields)

    # --- the answer ---------------------------------------------------------------------------------------------------

    def result(self, status: RunStatus, reason: str | None = None, usage: Usage | None = None) -> Result:
        """The answer as it stands now."""
        traceback = "\n".join(self._exception.traceback) if self._exception else ""
        error = "\n".join(part for part in (reason, traceback) if part) or None
        if status is not RunStatus.OK and status.is_final() and error is None:
            error = "The run did not end as it should have."
        return Result(
            run_id=self.run_id,
            status=status,
            output=self._output.text(EventType.STDOUT),
            stderr=self._output.text(EventType.STDERR),
            error=error if status is not RunStatus.OK else None,
            session_id=self.session_id,
            session_created=self.session_created,
            session_lost=self.session_lost,
            exception=self._exception if status is not RunStatus.OK else None,
            results=self._displays.results(),
            images=self._displays.images(),
            files=self._displays.files(),
            execution_count=self._execution_count,
            truncated=bool(
                self._output.dropped_bytes
                or self._tracebacks.dropped_bytes
                or self._log.dropped
                or self._displays.dropped()
            ),
            usage=usage,
        )


def _ref(kind: ArtifactKind, fields: Mapping[str, Any]) -> ArtifactRef:
    return ArtifactRef(fields["artifact_id"], kind, fields["name"], fields["content_type"], fields["bytes"])


def _end_fields(result: Result) -> dict[str, Any]:
    """The fields of the `end` event: the parts of the result that no earlier event has."""
    fields: dict[str, Any] = {"truncated": result.truncated, "execution_count": result.execution_count}
    if result.error is not None:
        fields["error"] = result.error
    if result.usage is not None:
        fields["usage"] = result.usage.as_json()
    return fields
