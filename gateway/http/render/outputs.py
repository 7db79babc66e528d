"""What a run shows, as Jupyter's output messages made from its events, and as the outputs that a cell ends with. Pure.

How a notebook file or a WebSocket holds them is not its business, and nbformat is not imported for it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sessions.model import Event, EventType, Run, RunRecord, RunStatus
from sessions.sanitize import well_formed, well_formed_json

_SVG = "image/svg+xml"


@dataclass(frozen=True, slots=True)
class OutputImage:
    """An image of an output, before its bytes are fetched."""

    artifact_id: str
    content_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Output:
    """One output message. `content` is what Jupyter's messaging protocol says, without the image's bytes."""

    msg_type: str
    content: Mapping[str, Any]
    image: OutputImage | None = None
    display_id: str | None = None

    @property
    def size_bytes(self) -> int:
        """About how much it takes, without its image."""
        return len(json.dumps(self.content))


class OutputMessages:
    """Makes messages of events. The mutable state is the images so far, by name, and the execution count."""

    def __init__(self, execution_count: int | None) -> None:
        self._execution_count = execution_count
        self._images: dict[str, OutputImage] = {}

    def output(self, event: Event) -> Output | None:
        """The message of one event; None for an event that shows nothing by itself."""
        fields = event.fields
        match event.type:
            case EventType.STARTED:
                self._execution_count = fields.get("execution_count") or self._execution_count
            case EventType.STDOUT | EventType.STDERR:
                return Output("stream", {"name": event.type.value, "text": fields["text"]})
            case EventType.IMAGE:
                image = OutputImage(fields["artifact_id"], fields["content_type"], fields["bytes"])
                self._images[fields["name"]] = image
            case EventType.RESULT | EventType.UPDATE:
                return self._display(event)
            case EventType.CLEAR:
                return Output("clear_output", {"wait": bool(fields.get("wait"))})
            case EventType.ERROR:
                return _error(fields["name"], fields["value"], fields["traceback"])
            case _:
                pass
        return None

    def _display(self, event: Event) -> Output:
        fields, data = event.fields, dict(event.fields["data"])
        image = self._images.get(str(data.pop("image", None)))
        content: dict[str, Any] = {"data": data, "metadata": dict(fields.get("metadata") or {})}
        msg_type = "update_display_data" if event.type is EventType.UPDATE else "display_data"
        if fields.get("is_main_result"):
            msg_type, content["execution_count"] = "execute_result", self._execution_count
        return Output(msg_type, content, image, fields.get("display_id"))


def _error(name: str, value: str, traceback: Sequence[str]) -> Output:
    return Output("error", {"ename": name, "evalue": value, "traceback": list(traceback)})


def note(text: str) -> Output:
    """A line of our own among a cell's outputs."""
    return Output("stream", {"name": "stderr", "text": f"[cellblock] {text}\n"})


def output_content(output: Output, images: Mapping[str, bytes]) -> dict[str, Any]:
    """The content of a message with its image, where `images` has the bytes, by artifact id."""
    content: dict[str, Any] = well_formed_json(dict(output.content))
    if "data" in content:
        content["data"] = {mime: _mime_value(mime, value) for mime, value in content["data"].items()}
        if output.image is not None and output.image.artifact_id in images:
            content["data"][output.image.content_type] = _image(output.image, images[output.image.artifact_id])
    return content


def _mime_value(mime: str, value: Any) -> Any:
    """One value of a MIME bundle as the notebook format requires it: text, except for JSON types."""
    if isinstance(value, str) or mime == "application/json" or mime.endswith("+json"):
        return value
    return json.dumps(value)


def _image(image: OutputImage, data: bytes) -> str:
    if image.content_type == _SVG:
        return well_formed(data.decode("utf-8", "replace"))
    return base64.b64encode(data).decode("ascii")


@dataclass(frozen=True, slots=True)
class NotebookRun:
    """What a notebook keeps of a run: its outputs, with the bytes of their images by artifact id, and no answer."""

    run: Run
    execution_count: int | None
    outputs: Sequence[Output]
    images: Mapping[str, bytes] = field(default_factory=dict)


# --- the outputs at the end -------------------------------------------------------------------------------------------


def final_outputs(record: RunRecord, events: Iterable[Event]) -> list[Output]:
    """The outputs as they stood at the end of a run, with every update and clearing applied."""
    fold = _Fold(record.result.execution_count if record.result is not None else None)
    for event in events:
        fold.add(event)
    outputs = fold.outputs()
    return outputs + _unexplained_end(record, outputs)


class _Fold:
    """Applies messages to the outputs of a cell, as a notebook does.

    The mutable state is the outputs, each with the `seq` of its event and its text in pieces; the last update of each
    display id; and whether the next output clears the others.
    """

    def __init__(self, execution_count: int | None) -> None:
        self._messages = OutputMessages(execution_count)
        self._shown: list[tuple[int, Output]] = []
        self._updates: dict[str | None, tuple[int, Output]] = {}
        self._is_clearing = False

    def add(self, event: Event) -> None:
        """Apply one event. The execution count is the record's, not that of `started`."""
        output = None if event.type is EventType.STARTED else self._messages.output(event)
        match output:
            case None:
                pass
            case Output("clear_output", {"wait": True}):
                self._is_clearing = True
            case Output("clear_output"):
                self._shown = []
            case Output("update_display_data"):
                self._updates[output.display_id] = (event.seq, output)
            case _:
                if self._is_clearing:
                    self._shown, self._is_clearing = [], False
                self._append(event.seq, output)

    def outputs(self) -> list[Output]:
        """The outputs as they stand now."""
        return [self._as_updated(seq, output) for seq, output in self._shown]

    def _append(self, seq: int, output: Output) -> None:
        """Add an output; text of the same stream as the last one is appended to that."""
        if output.msg_type == "stream":
            name, text = output.content["name"], output.content["text"]
            last = self._shown[-1][1] if self._shown else None
            if last is not None and last.content.get("name") == name:
                last.content["text"].append(text)
                return
            output = replace(output, content={"name": name, "text": [text]})
        self._shown.append((seq, output))

    def _as_updated(self, seq: int, output: Output) -> Output:
        if output.msg_type == "stream":
            return replace(output, content={**output.content, "text": "".join(output.content["text"])})
        updated_seq, update = self._updates.get(output.display_id or "", (0, output))
        if updated_seq < seq:
            return output
        return replace(output, content={**output.content, "data": update.content["data"]}, image=update.image)


def _unexplained_end(record: RunRecord, outputs: Sequence[Output]) -> list[Output]:
    """An error output for an end that no exception of the code shows: a time-out, a dead kernel."""
    result = record.result
    if result is None or result.status is RunStatus.OK or any(output.msg_type == "error" for output in outputs):
        return []
    text = result.error or f"The run ended as {result.status.value}."
    return [_error(result.status.value, text, text.split("\n"))]
