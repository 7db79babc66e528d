"""The fold of a run whose gateway has died, had again from what was committed: nobody can tell the difference."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_media import GIF, png

from sessions.kernels.messages import Message
from sessions.model import ArtifactId, Event, EventType, Result, RunId, RunStatus, SessionId
from sessions.output.fold import RunFold
from sessions.settings import Limits

LIMITS = Limits(output_bytes=150, image_bytes=200, image_count=4, file_bytes=60, file_count=2, image_pixels=100)
TEXTS = frozenset({EventType.STDOUT, EventType.STDERR})
FIGURES = [base64.b64encode(data).decode() for data in (png(3, 4), png(2, 2), png(100, 100), GIF, b"\x89PNG\r\n\x1a\n")]

Step = Message | int
"""A message, or so many bytes that were lost on the way."""


def new_fold() -> RunFold:
    return RunFold(RunId("r"), LIMITS, SessionId("s"))


def message(msg_type: str, content: dict[str, Any], *buffers: bytes) -> Message:
    return Message("iopub", msg_type, "p", content, buffers)


def take(into: RunFold, steps: Sequence[Step]) -> None:
    for step in steps:
        if isinstance(step, int):
            into.handle_gap(step)
        else:
            into.handle_message(step)


# --- what a kernel may say --------------------------------------------------------------------------------------------

texts = st.text(alphabet="aé\n\x1b\ud800", max_size=30)
display_ids = st.sampled_from([None, "d", "e"])
bundles = st.dictionaries(
    st.sampled_from(["text/plain", "text/html", "application/json"]),
    texts | st.lists(st.integers(), max_size=3),
    max_size=2,
) | st.builds(
    lambda figure, text: {"text/plain": text, "image/png": figure} if text else {"image/png": figure},
    st.sampled_from(FIGURES),
    texts,
)


def display(msg_type: str, data: object, display_id: str | None) -> Message:
    return message(msg_type, {"data": data, "transient": {} if display_id is None else {"display_id": display_id}})


errors = st.builds(
    lambda name, value, lines: {"ename": name, "evalue": value, "traceback": lines},
    st.sampled_from(["ValueError", "SystemExit"]),
    st.sampled_from(["", "0", "1", "v"]),
    st.lists(st.sampled_from(["Cell In[3], line 7", "x"]), max_size=2),
)
shown_by = st.sampled_from(["display_data", "execute_result", "update_display_data"])
said = st.one_of(
    st.builds(
        lambda name, text: message("stream", {"name": name, "text": text}), st.sampled_from(["stdout", "stderr"]), texts
    ),
    st.builds(
        display, st.sampled_from(["display_data", "execute_result", "update_display_data"]), bundles, display_ids
    ),
    st.builds(lambda wait: message("clear_output", {"wait": wait}), st.booleans()),
    st.builds(lambda content: message("error", content), errors),
    st.builds(lambda prompt: message("input_request", {"prompt": prompt, "password": False}), texts),
    st.integers(1, 9),
)


@st.composite
def files(draw: st.DrawFn) -> list[Step]:
    """A file in pieces, of which the last may never come."""
    path = draw(st.sampled_from(["a.txt", "b/c.csv", "plot.png", "figure-1.png"]))
    data = draw(st.sampled_from([png(3, 4), b"x" * 50, b"y" * 61, b""]))
    cuts = sorted({0, *draw(st.lists(st.integers(0, len(data)), max_size=2)), len(data)})
    pieces = list(itertools.pairwise(cuts)) or [(0, 0)]
    whole = [
        message("artifact", {"path": path, "bytes": len(data), "offset": start}, data[start:end])
        for start, end in pieces
    ]
    return [*whole[: draw(st.integers(1, len(whole)))]]


@st.composite
def conversations(draw: st.DrawFn) -> list[Step]:
    """As an honest supervisor passes it on: what the kernel says, its reply, then the files."""
    steps: list[Step] = [message("execute_input", {"execution_count": 3})]
    steps += draw(st.lists(said, max_size=14))
    if draw(st.booleans()):
        status = draw(st.sampled_from(["ok", "error"]))
        payload = draw(
            st.sampled_from([[], [{"source": "ask_exit"}], [{"source": "page", "data": {"text/plain": "p"}}]])
        )
        reply = {"status": status, "execution_count": 3, "payload": payload, **(draw(errors) if status != "ok" else {})}
        steps.append(message("execute_reply", reply))
        for file in draw(st.lists(files(), max_size=3)):
            steps += file
    return steps


# --- what must be the same --------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What a client has of a run: the text of each stream between other events, those events, and the answer."""

    events: list[tuple[str, Any]]
    result: Result


def told(events: Sequence[Event], result: Result) -> Told:
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    joined: list[tuple[str, Any]] = []
    for event in events:
        fields = {key: value for key, value in event.fields.items() if key != "artifact_id"}
        if event.type in TEXTS and joined and joined[-1][0] == event.type:
            joined[-1] = (event.type, joined[-1][1] + fields["text"])
        else:
            joined.append((event.type, fields["text"] if event.type in TEXTS else fields))

    def by_name(refs: Any) -> Any:
        return {name: replace(ref, id=ArtifactId("")) for name, ref in sorted(refs.items())}

    return Told(joined, replace(result, images=by_name(result.images), files=by_name(result.files)))


def gone_on(steps: Sequence[Step], split: int) -> RunFold:
    """What another gateway makes of it that takes over after `split` steps, and the events with it."""
    first = new_fold()
    half_file: int | None = None  # as sessions.runs.recorder counts: where a file begins whose end has not come
    for index, step in enumerate(steps[:split]):
        if not first.is_assembling():
            half_file = index
        take(first, [step])
    events = first.drain().events
    state = json.loads(json.dumps(first.state()))
    stored = [Event(event.seq, event.type, json.loads(json.dumps(event.fields))) for event in events]
    second = new_fold()
    second.resume(stored, state)
    if first.is_assembling():
        pieces = [step for step in steps[half_file:split] if isinstance(step, Message) and step.msg_type == "artifact"]
        take(second, pieces)
    second.committed = stored  # type: ignore[attr-defined]
    return second


def compare(steps: Sequence[Step], split: int, status: RunStatus | None) -> None:
    whole = new_fold()
    take(whole, steps)
    resumed = gone_on(steps, split)
    take(resumed, steps[split:])
    assert resumed.ended_status() == whole.ended_status()
    assert (resumed.leaves, resumed.awaits_input) == (whole.leaves, whole.awaits_input)
    at_work = told(whole.drain().events, whole.result(RunStatus.RUNNING))
    first, rest = resumed.committed, resumed.drain().events  # type: ignore[attr-defined]
    assert told([*first, *rest], resumed.result(RunStatus.RUNNING)) == at_work
    before = len(first) + len(rest)
    for one in (whole, resumed):
        one.add_skipped([{"path": "late.bin", "bytes": 7, "why": "time"}])
    ended = whole.finish(status or whole.ended_status(), "why" if status else None, None)
    also = resumed.finish(status or resumed.ended_status(), "why" if status else None, None)
    last = [(event.type, dict(event.fields)) for event in whole.drain().events]
    mine = resumed.drain().events
    assert [event.seq for event in mine] == list(range(before + 1, before + len(mine) + 1))
    assert [(event.type, dict(event.fields)) for event in mine] == last
    assert told([], also).result == told([], ended).result


@settings(max_examples=250, deadline=None)
@given(conversations(), st.floats(0, 1), st.sampled_from([None, RunStatus.TIMEOUT, RunStatus.ERROR]))
def test_whatever_has_come_and_wherever_it_stopped_another_fold_goes_on_from_there(
    steps: list[Step], share: float, status: RunStatus | None
) -> None:
    compare(steps, round(share * len(steps)), status)


TOO_WIDE = "x" * 149 + "é"
PLOT = display("display_data", {"image/png": FIGURES[0]}, "d")
CLEAR_LATER = message("clear_output", {"wait": True})


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([PLOT, CLEAR_LATER, display("display_data", {}, None)], id="cleared by what shows nothing"),
        pytest.param([PLOT, CLEAR_LATER, message("error", {})], id="cleared by an error that is none"),
        pytest.param([PLOT, display("update_display_data", {}, "d")], id="replaced by nothing"),
        pytest.param(
            [PLOT, display("update_display_data", {"image/png": "?"}, "d"), PLOT], id="replaced by no picture"
        ),
        pytest.param(
            [
                message("stream", {"name": "stdout", "text": "x" * 149 + "é"}),
                message("stream", {"name": "stdout", "text": "y"}),
            ],
            id="a character that did not fit",
        ),
        pytest.param(
            [
                message("error", {"ename": "ValueError", "evalue": "v", "traceback": ["x"]}),
                message("error", {"ename": "SystemExit", "evalue": "0", "traceback": ["x"]}),
                message("execute_reply", {"status": "error", "execution_count": 3}),
            ],
            id="an exception that leaving has forgiven",
        ),
        pytest.param([PLOT, message("clear_output", {"wait": False}), PLOT, PLOT], id="numbered from one again"),
        pytest.param([display("display_data", {"text/plain": "x" * 100}, None)] * 3, id="results beyond the limit"),
    ],
)
@pytest.mark.parametrize("status", [None, RunStatus.TIMEOUT])
def test_what_no_event_tells_is_kept_as_well(steps: list[Step], status: RunStatus | None) -> None:
    for split in range(len(steps) + 1):
        compare(steps, split, status)
