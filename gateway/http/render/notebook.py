"""A session as a Jupyter notebook: what its runs showed, folded from their events, and cells that run again. Pure.

nbformat makes the cells and the outputs; the format is https://nbformat.readthedocs.io/en/latest/format_description.html
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sessions.model import Event, EventType, Run, RunRecord, RunStatus
from sessions.sanitize import well_formed, well_formed_json

if TYPE_CHECKING:
    from nbformat import NotebookNode

_INJECTED = "injected-parameters"  # as papermill has it: https://papermill.readthedocs.io
_SVG = "image/svg+xml"
_OUTPUTS = frozenset({EventType.STDOUT, EventType.STDERR, EventType.RESULT, EventType.ERROR})


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image in an output, before its bytes are there."""

    artifact_id: str
    content_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Shown:
    """One output of a cell. `kind` is nbformat's `output_type`; `content` its other fields, images apart."""

    kind: str
    content: Mapping[str, Any]
    image: ShownImage | None = None
    display_id: str | None = None

    @property
    def size_bytes(self) -> int:
        """About how much it takes, without its image."""
        return len(json.dumps(self.content))


@dataclass(frozen=True, slots=True)
class NotebookRun:
    """What a notebook keeps of a run: what it showed, with the bytes of its images by artifact id, and no answer."""

    run: Run
    execution_count: int | None
    shown: Sequence[Shown]
    images: Mapping[str, bytes] = field(default_factory=dict)


def note(text: str) -> Shown:
    """A line of our own among a cell's outputs."""
    return Shown("stream", {"name": "stderr", "text": f"[cellblock] {text}\n"})


# --- what a run showed ------------------------------------------------------------------------------------------------


def shown_by(record: RunRecord, events: Iterable[Event]) -> list[Shown]:
    """The outputs as they stood at the end, with every update and clearing applied."""
    fold = _Fold(record.result.execution_count if record.result is not None else None)
    for event in events:
        fold.take(event)
    shown = fold.outputs()
    return shown + _end(record, shown)


class _Fold:
    """Outputs while events come in.

    Its state: what is shown, each with the `seq` of its event, text in pieces; the last update of each display id, and
    whether the next output clears the others away.
    """

    def __init__(self, execution_count: int | None) -> None:
        self._execution_count = execution_count
        self._shown: list[tuple[int, Shown]] = []
        self._updates: dict[str, tuple[int, Shown]] = {}
        self._images: dict[str, ShownImage] = {}
        self._is_clearing = False

    def take(self, event: Event) -> None:
        """Fold one event in."""
        fields = event.fields
        if self._is_clearing and event.type in _OUTPUTS:
            self._shown, self._is_clearing = [], False
        match event.type:
            case EventType.STDOUT | EventType.STDERR:
                self._add_text(event)
            case EventType.IMAGE:
                self._images[fields["name"]] = shown_image(fields)
            case EventType.RESULT:
                self._shown.append((event.seq, shown_result(fields, self._images, self._execution_count)))
            case EventType.UPDATE:
                update = shown_result(fields, self._images, self._execution_count)
                self._updates[fields["display_id"]] = (event.seq, update)
            case EventType.CLEAR if fields.get("wait"):
                self._is_clearing = True
            case EventType.CLEAR:
                self._shown = []
            case EventType.ERROR:
                self._shown.append((event.seq, _error(fields["name"], fields["value"], fields["traceback"])))
            case _:
                pass

    def outputs(self) -> list[Shown]:
        """What is shown now."""
        return [self._as_updated(seq, shown) for seq, shown in self._shown]

    def _add_text(self, event: Event) -> None:
        """Append to the last output where that is the same stream, as a notebook does."""
        last = self._shown[-1][1] if self._shown else None
        if last is not None and last.kind == "stream" and last.content["name"] == event.type.value:
            last.content["text"].append(event.fields["text"])
        else:
            content = {"name": event.type.value, "text": [event.fields["text"]]}
            self._shown.append((event.seq, Shown("stream", content)))

    def _as_updated(self, seq: int, shown: Shown) -> Shown:
        if shown.kind == "stream":
            return replace(shown, content={**shown.content, "text": "".join(shown.content["text"])})
        updated_seq, update = self._updates.get(shown.display_id or "", (0, shown))
        if updated_seq < seq:
            return shown
        return replace(shown, content={**shown.content, "data": update.content["data"]}, image=update.image)


def shown_image(fields: Mapping[str, Any]) -> ShownImage:
    """From the fields of an `image` event."""
    return ShownImage(fields["artifact_id"], fields["content_type"], fields["bytes"])


def shown_result(fields: Mapping[str, Any], images: Mapping[str, ShownImage], execution_count: int | None) -> Shown:
    """From the fields of a `result` or `update` event; `images` are those that came before it, by name."""
    data = dict(fields["data"])
    image = images.get(str(data.pop("image", None)))
    content: dict[str, Any] = {"data": data, "metadata": dict(fields.get("metadata") or {})}
    if fields.get("is_main_result"):
        content["execution_count"] = execution_count
        return Shown("execute_result", content, image, fields.get("display_id"))
    return Shown("display_data", content, image, fields.get("display_id"))


def _error(name: str, value: str, traceback: Sequence[str]) -> Shown:
    return Shown("error", {"ename": name, "evalue": value, "traceback": list(traceback)})


def _end(record: RunRecord, shown: Sequence[Shown]) -> list[Shown]:
    """An end that no exception of the code tells: a time-out, a dead kernel."""
    result = record.result
    if result is None or result.status is RunStatus.OK or any(output.kind == "error" for output in shown):
        return []
    text = result.error or f"The run ended as {result.status.value}."
    return [_error(result.status.value, text, text.split("\n"))]


# --- cells ------------------------------------------------------------------------------------------------------------


def notebook(runs: Iterable[NotebookRun], *, language: str, kernel_name: str, has_older: bool = False) -> NotebookNode:
    """The whole notebook: per run a cell with its code, and before it one that sets its variables, if it had any.

    Where it `has_older` runs that are not in it, a text at the top says so.
    """
    from nbformat import v4

    cells = [_missing()] if has_older else []
    cells += [cell for run in runs for cell in _cells(run, is_python=kernel_name.startswith("python"))]
    kernelspec = {"name": kernel_name, "display_name": language.capitalize(), "language": language}
    made: NotebookNode = v4.new_notebook(  # type: ignore[no-untyped-call]
        cells=cells, metadata={"kernelspec": kernelspec, "language_info": {"name": language}}
    )
    return made


def _missing() -> NotebookNode:
    from nbformat import v4

    text = "**Older runs were left out**: read them at `/runs`. What they had set is missing when this runs again."
    cell: NotebookNode = v4.new_markdown_cell(text, id="left-out")  # type: ignore[no-untyped-call]
    return cell


def _cells(run: NotebookRun, *, is_python: bool) -> list[NotebookNode]:
    asked = run.run
    cells = []
    if asked.variables and is_python:
        source = "\n".join(f"{name} = {python_literal(value)}" for name, value in asked.variables.items())
        cells.append(_cell(source, id=f"{asked.run_id}-variables", metadata={"tags": [_INJECTED]}))
    outputs = [_output(shown, run.images) for shown in run.shown]
    return [*cells, _cell(asked.code, id=asked.run_id, execution_count=run.execution_count, outputs=outputs)]


def _cell(source: str, **fields: Any) -> NotebookNode:
    from nbformat import v4

    cell: NotebookNode = v4.new_code_cell(well_formed(source), **fields)  # type: ignore[no-untyped-call]
    return cell


def _output(shown: Shown, images: Mapping[str, bytes]) -> NotebookNode:
    from nbformat import v4

    content = output_content(shown, images)
    output: NotebookNode = v4.new_output(shown.kind, **content)  # type: ignore[no-untyped-call]
    return output


def output_content(shown: Shown, images: Mapping[str, bytes]) -> dict[str, Any]:
    """The fields of an output but for its type, with the bytes of its image where they are there, by artifact id."""
    content: dict[str, Any] = well_formed_json(dict(shown.content))
    if "data" in content:
        content["data"] = {mime: _close_link(mime, value) for mime, value in content["data"].items()}
        if shown.image is not None and shown.image.artifact_id in images:
            content["data"][shown.image.content_type] = _image(shown.image, images[shown.image.artifact_id])
    return content


def _close_link(mime: str, value: Any) -> Any:
    """A part of a MIME bundle as the format wants it: text, but for JSON types."""
    if isinstance(value, str) or mime == "application/json" or mime.endswith("+json"):
        return value
    return json.dumps(value)


def _image(image: ShownImage, data: bytes) -> str:
    if image.content_type == _SVG:
        return well_formed(data.decode("utf-8", "replace"))
    return base64.b64encode(data).decode("ascii")


def python_literal(value: Any) -> str:
    """A JSON value as Python source: ASCII escapes for what UTF-8 cannot say, and no bare `inf`."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{str(key)!r}: {python_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(python_literal(item) for item in value) + "]"
    return repr(value)
