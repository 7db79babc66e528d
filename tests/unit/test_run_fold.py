"""The fold: what a kernel says becomes events without gaps and one answer within every limit, whatever it says."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.render.answer import run_answer, strict_json
from sessions.kernels.messages import Message
from sessions.model import Event, EventType, RunId, RunStatus, Usage
from sessions.output.fold import RunFold
from sessions.settings import Limits

LIMITS = Limits(output_bytes=1000, image_bytes=200, image_count=3, file_bytes=200, file_count=3, image_pixels=100)


def new_fold(limits: Limits = LIMITS) -> RunFold:
    return RunFold(RunId("r"), limits)


def take(fold: RunFold, msg_type: str, content: Mapping[str, Any], buffers: tuple[bytes, ...] = ()) -> None:
    fold.handle_message(Message("iopub", msg_type, "p", content, buffers))


def stream(fold: RunFold, text: str, name: str = "stdout") -> None:
    take(fold, "stream", {"name": name, "text": text})


def events(fold: RunFold) -> list[tuple[str, dict[str, Any]]]:
    return [(event.type.value, dict(event.fields)) for event in fold.drain().events]


def test_a_plain_run_has_a_beginning_its_output_and_an_end() -> None:
    fold = new_fold()
    take(fold, "execute_input", {"code": "print(1)", "execution_count": 3})
    stream(fold, "1\n")
    take(fold, "execute_reply", {"status": "ok", "execution_count": 3})
    result = fold.finish(fold.ended_status(), None, Usage(1.0, 2.0, 3))
    assert (result.status, result.output, result.execution_count) == (RunStatus.OK, "1\n", 3)
    assert (result.error, result.exception, result.truncated) == (None, None, False)
    usage = {"wall_ms": 1.0, "cpu_ms": 2.0, "memory_peak_bytes": 3}
    assert events(fold) == [
        ("started", {"execution_count": 3}),
        ("stdout", {"text": "1\n"}),
        ("end", {"status": "ok", "truncated": False, "execution_count": 3, "usage": usage}),
    ]


def test_the_two_streams_are_kept_apart() -> None:
    fold = new_fold()
    stream(fold, "a")
    stream(fold, "b", "stderr")
    stream(fold, "c")
    result = fold.finish(RunStatus.OK, None, None)
    assert (result.output, result.stderr) == ("ac", "b")
    assert [name for name, _ in events(fold)] == ["started", "stdout", "stderr", "stdout", "end"]


def test_many_small_pieces_become_one_event_and_a_drained_event_never_changes() -> None:
    fold = new_fold()
    for _ in range(50):
        stream(fold, "x")
    assert events(fold) == [("started", {"execution_count": None}), ("stdout", {"text": "x" * 50})]
    stream(fold, "y")
    assert [(event.seq, dict(event.fields)) for event in fold.drain().events] == [(3, {"text": "y"})]


def test_output_beyond_the_limit_is_cut_at_a_whole_character_and_said() -> None:
    fold = new_fold()
    stream(fold, "é" * 499)
    stream(fold, "xyé", "stderr")
    stream(fold, "more")
    result = fold.finish(RunStatus.OK, None, None)
    assert result.output == "é" * 499
    assert result.stderr.startswith("xy[cellblock] output was cut: 6 bytes")
    assert result.truncated
    assert ("truncated", {"what": "output", "dropped_bytes": 6}) in events(fold)


def test_output_lost_on_the_way_is_said_too() -> None:
    fold = new_fold()
    fold.handle_gap(77)
    assert fold.finish(RunStatus.OK, None, None).truncated
    assert ("truncated", {"what": "output", "dropped_bytes": 77}) in events(fold)


def error(fold: RunFold, name: str, value: str, *lines: str, count: int = 1) -> None:
    content = {"ename": name, "evalue": value, "traceback": list(lines)}
    take(fold, "error", content)
    take(fold, "execute_reply", {"status": "error", "execution_count": count, **content})


def test_an_exception_is_told_without_colours_and_with_its_line() -> None:
    fold = new_fold()
    take(fold, "execute_input", {"execution_count": 1})
    lines = (
        "\x1b[31mKeyError\x1b[0m",
        "Cell In[1], line 6",
        "Cell In[12], line 9",
        "Cell In[1], line 2",
        "File x.py:8",
    )
    error(fold, "KeyError", "'k'", *lines)
    result = fold.finish(fold.ended_status(), None, None)
    assert result.status is RunStatus.ERROR
    assert result.exception is not None
    assert (result.exception.name, result.exception.value, result.exception.line) == ("KeyError", "'k'", 2)
    assert result.exception.traceback[0] == "KeyError"
    assert result.error == "\n".join(result.exception.traceback)
    assert [name for name, _ in events(fold)] == ["started", "error", "end"]


def test_a_stack_of_javascript_begins_with_the_line() -> None:
    fold = new_fold()
    take(fold, "execute_input", {"execution_count": 2})
    lines = (
        "TypeError: null has no Cell In[2], line 3",
        "    at earlier (Cell In[1], line 4, column 1)",
        "    at check (Cell In[2], line 7, column 13)",
        "    at async Cell In[2], line 11, column 1",
    )
    error(fold, "TypeError", "null", *lines, count=2)
    exception = fold.finish(fold.ended_status(), None, None).exception
    assert exception is not None
    assert exception.line == 7


def test_an_error_that_only_the_reply_tells_is_told() -> None:
    fold = new_fold()
    take(fold, "execute_reply", {"status": "error", "ename": "E", "evalue": "v", "traceback": ["t"]})
    result = fold.finish(fold.ended_status(), None, None)
    assert (result.status, result.error) == (RunStatus.ERROR, "t")


@pytest.mark.parametrize("value", ["", "0", "None"])
def test_leaving_with_success_is_success(value: str) -> None:
    fold = new_fold()
    error(fold, "SystemExit", value, "An exception has occurred")
    result = fold.finish(fold.ended_status(), None, None)
    assert (result.status, result.error, result.exception) == (RunStatus.OK, None, None)
    assert "error" not in [name for name, _ in events(fold)]


def test_leaving_with_a_status_is_an_error() -> None:
    fold = new_fold()
    error(fold, "SystemExit", "3", "SystemExit: 3")
    result = fold.finish(fold.ended_status(), None, None)
    assert result.status is RunStatus.ERROR
    assert result.exception is not None
    assert result.exception.name == "SystemExit"
    assert "error" in [name for name, _ in events(fold)]


def test_an_error_that_the_code_showed_and_survived_is_no_failure() -> None:
    fold = new_fold()
    take(fold, "error", {"ename": "E", "evalue": "v", "traceback": ["t"]})
    take(fold, "execute_reply", {"status": "ok"})
    result = fold.finish(fold.ended_status(), None, None)
    assert (result.status, result.exception) == (RunStatus.OK, None)


def test_errors_that_the_code_survived_are_standard_error() -> None:
    fold = new_fold()
    for name in ("One", "Two", "Three"):
        take(fold, "error", {"ename": name, "evalue": "x", "traceback": [f"\x1b[31m{name}: x\x1b[0m"]})
        stream(fold, f"after {name}\n", "stderr")
    take(fold, "execute_reply", {"status": "error", "ename": "Three", "evalue": "x", "traceback": []})
    result = fold.finish(fold.ended_status(), None, None)
    assert (result.status, result.error) == (RunStatus.ERROR, "Three: x")
    assert result.stderr == "after One\nOne: x\nafter Two\nTwo: x\nafter Three\n"


def test_a_reply_that_overtakes_its_error_makes_one_error_of_it() -> None:
    fold = new_fold()
    content = {"ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": ["Traceback", "1/0"]}
    take(fold, "execute_reply", {"status": "error", **content})
    take(fold, "error", content)
    result = fold.finish(fold.ended_status(), None, None)
    assert (result.status, result.stderr) == (RunStatus.ERROR, "")
    assert [type_ for type_, _ in events(fold)] == ["started", "error", "end"]


def test_an_error_that_was_survived_stays_one_when_the_reply_overtakes_the_last() -> None:
    fold = new_fold()
    error(fold, "One", "x", "One: x")
    take(fold, "execute_reply", {"status": "error", "ename": "Two", "evalue": "y", "traceback": ["Two: y"]})
    error(fold, "Two", "y", "Two: y")
    result = fold.finish(fold.ended_status(), None, None)
    assert (result.error, result.stderr) == ("Two: y", "One: x\n")


def test_an_error_that_was_survived_stays_one_when_the_reply_overtakes_it() -> None:
    fold = new_fold()
    take(fold, "error", {"ename": "One", "evalue": "x", "traceback": ["One: x"]})
    take(fold, "execute_reply", {"status": "ok"})
    take(fold, "error", {"ename": "Two", "evalue": "y", "traceback": ["Two: y"]})
    result = fold.finish(fold.ended_status(), None, None)
    assert (result.status, result.error, result.stderr) == (RunStatus.OK, None, "One: x\nTwo: y\n")


def test_every_failure_has_an_explanation() -> None:
    for status in RunStatus:
        if status.is_final():
            result = new_fold().finish(status, None, None)
            assert (result.error is None) == (status is RunStatus.OK)


def test_the_reason_stands_before_the_traceback() -> None:
    fold = new_fold()
    error(fold, "KeyboardInterrupt", "", "KeyboardInterrupt: ")
    assert fold.finish(RunStatus.TIMEOUT, "Too slow.", None).error == "Too slow.\nKeyboardInterrupt: "


def test_results_are_replaced_and_cleared_as_a_notebook_does() -> None:
    fold = new_fold()
    take(fold, "display_data", {"data": {"text/plain": "one"}, "transient": {"display_id": "d"}})
    take(fold, "execute_result", {"data": {"text/plain": "two"}})
    take(fold, "update_display_data", {"data": {"text/plain": "uno"}, "transient": {"display_id": "d"}})
    assert [name for name, _ in events(fold)] == ["started", "result", "result", "update"]
    take(fold, "clear_output", {"wait": True})
    take(fold, "update_display_data", {"data": {"text/plain": "eins"}, "transient": {"display_id": "d"}})
    take(fold, "display_data", {"data": {"text/plain": "three"}})
    assert fold.finish(RunStatus.OK, None, None).results == ({"text/plain": "three"},)
    assert [name for name, _ in events(fold)] == ["clear", "update", "result", "end"]


def test_leaving_clears_what_was_to_be_cleared_by_the_next_output() -> None:
    """The traceback that is shown then is told by the reply alone; whoever replays the events sees it as an output."""
    fold = new_fold()
    take(fold, "display_data", {"data": {"text/plain": "1"}})
    take(fold, "clear_output", {"wait": True})
    take(fold, "execute_reply", {"status": "error", "ename": "SystemExit", "evalue": "1", "traceback": []})
    assert fold.finish(fold.ended_status(), None, None).results == ()


def test_a_clear_that_waits_for_output_that_never_comes_clears_nothing() -> None:
    fold = new_fold()
    take(fold, "display_data", {"data": {"text/plain": "kept"}})
    take(fold, "clear_output", {"wait": True})
    assert fold.finish(RunStatus.OK, None, None).results == ({"text/plain": "kept"},)


def test_what_a_question_mark_shows_is_a_result_without_colours() -> None:
    fold = new_fold()
    page = {"source": "page", "data": {"text/plain": "\x1b[31mDoc\x1b[0m"}, "start": 0}
    take(fold, "execute_reply", {"status": "ok", "payload": [page, 7, {"source": "set_next_input"}]})
    assert fold.finish(RunStatus.OK, None, None).results == ({"text/plain": "Doc"},)


def test_everything_pending_is_drained_once_and_gaplessly() -> None:
    fold = new_fold()
    assert not fold.has_pending()
    stream(fold, "a")
    assert fold.has_pending()
    first = fold.drain()
    assert not fold.has_pending()
    assert fold.drain().events == ()
    take(fold, "display_data", {"data": {"text/plain": "x"}})
    fold.finish(RunStatus.OK, None, None)
    assert [event.seq for event in (*first.events, *fold.drain().events)] == [1, 2, 3, 4]


def test_a_file_in_part_is_known_to_be_in_part() -> None:
    fold = new_fold()
    take(fold, "artifact", {"path": "f", "bytes": 4, "offset": 0}, (b"ab",))
    assert fold.is_assembling()
    assert not fold.drain().artifacts
    take(fold, "artifact", {"path": "f", "bytes": 4, "offset": 2}, (b"cd",))
    assert not fold.is_assembling()
    assert [artifact.data for artifact in fold.drain().artifacts] == [b"abcd"]


def test_all_tracebacks_together_stay_within_the_limit() -> None:
    fold = new_fold()
    for _ in range(50):
        take(fold, "error", {"ename": "E", "evalue": "v" * 100, "traceback": ["t" * 200]})
    fold.finish(fold.ended_status(), None, None)
    told = [fields for name, fields in events(fold) if name == "error"]
    assert sum(len("".join(fields["traceback"]) + fields["value"]) for fields in told) <= LIMITS.output_bytes


def test_a_flood_of_changes_is_cut_and_a_flood_of_pieces_put_together() -> None:
    fold = new_fold(Limits(output_bytes=1 << 20))
    for _ in range(30_000):
        take(fold, "clear_output", {})
    for _ in range(20_000):
        stream(fold, "o")
        stream(fold, "e", "stderr")
    take(fold, "error", {"ename": "E", "evalue": "v", "traceback": ["t"]})
    result = fold.finish(fold.ended_status(), None, None)
    assert result.output == "o" * 20_000
    assert result.stderr.startswith("e" * 20_000)
    assert result.status is RunStatus.ERROR
    assert result.exception is not None
    assert result.truncated
    batch = fold.drain()
    assert len(batch.events) < 10_100
    text = {EventType.STDOUT: "", EventType.STDERR: ""}
    for event in batch.events:
        if event.type in text:
            text[event.type] += event.fields["text"]
    assert (text[EventType.STDOUT], text[EventType.STDERR]) == (result.output, result.stderr)


# --- whatever a kernel says -------------------------------------------------------------------------------------------

strings = st.one_of(
    st.text(st.characters(codec=None, categories=None), max_size=30),
    st.sampled_from(["\x00", "\ud800", "x" * 600, "\x1b[31m", "SystemExit", "iVBORw0KGgo=", "page", "../x", "a/b.png"]),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
    max_leaves=8,
)
mimes = st.sampled_from(["text/plain", "text/html", "image/png", "image/svg+xml", "application/json", "odd\ud800"])
pictures = st.sampled_from(["iVBORw0KGgo=", "R0lGODlhAwAEAAAAADs=", "<svg/>", "not base64 é", 7, None])
contents = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["stdout", "stderr", "other"]) | values,
        "text": strings | values,
        "data": st.dictionaries(mimes, pictures | values, max_size=4) | values,
        "transient": st.fixed_dictionaries({}, optional={"display_id": st.sampled_from(["a", "b"]) | values}) | values,
        "wait": st.booleans() | values,
        "execution_count": st.integers(-5, 1 << 40) | values,
        "ename": strings | values,
        "evalue": strings | values,
        "traceback": st.lists(strings, max_size=3) | values,
        "status": st.sampled_from(["ok", "error", "aborted"]) | values,
        "payload": st.lists(st.fixed_dictionaries({"source": strings, "data": values}), max_size=2) | values,
        "path": strings | values,
        "bytes": st.integers(-1, 300) | values,
        "offset": st.integers(-1, 300) | values,
    },
)
types = st.sampled_from(
    [
        "stream",
        "display_data",
        "execute_result",
        "update_display_data",
        "clear_output",
        "execute_input",
        "error",
        "execute_reply",
        "artifact",
        "status",
        "input_request",
    ]
)
taken = st.lists(st.tuples(types, contents, st.lists(st.binary(max_size=300), max_size=2)), max_size=25)


def refuse(constant: str) -> None:
    raise AssertionError(constant)


@settings(max_examples=200, deadline=None)
@given(taken, st.sampled_from([status for status in RunStatus if status.is_final()]), values)
def test_whatever_comes_makes_events_without_gaps_and_an_answer_within_limits(
    messages: list[tuple[str, dict[str, Any], list[bytes]]], status: RunStatus, skipped: object
) -> None:
    fold = new_fold()
    told: list[Event] = []
    data_bytes = 0
    for msg_type, content, buffers in messages:
        take(fold, msg_type, content, tuple(buffers))
        batch = fold.drain()
        told += batch.events
        data_bytes += sum(len(artifact.data) for artifact in batch.artifacts)
    fold.add_skipped([{"path": skipped, "bytes": skipped, "why": skipped}])
    result = fold.finish(status, None, None)
    told += fold.drain().events
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert (told[0].type, told[-1].type) == (EventType.STARTED, EventType.END)
    assert [event.type for event in told].count(EventType.END) == 1
    printed = [e.fields["text"] for e in told if e.type in (EventType.STDOUT, EventType.STDERR)]
    ours = result.stderr[result.stderr.find("[cellblock] ") :] if "[cellblock] " in result.stderr else ""
    assert "".join(printed).encode()
    assert len(result.output.encode()) + len(result.stderr.encode()) - len(ours.encode()) <= LIMITS.output_bytes
    assert len(result.images) <= LIMITS.image_count
    assert len(result.files) <= LIMITS.file_count
    stored = [result.output, result.stderr, result.error or "", *result.images, *result.files]
    "".join(stored).encode()
    json.loads(strict_json(run_answer(result, "http://host")), parse_constant=refuse)
    for event in told:
        json.loads(strict_json(dict(event.fields)), parse_constant=refuse)


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        ({"image/png": {"width": 10}}, {"image/png": {"width": 10}}),
        ({"\ud800": "\udfff"}, {"\ufffd": "\ufffd"}),
        ({"much": "x" * 2000}, {}),
        ("none", {}),
        (None, {}),
    ],
)
def test_what_a_display_says_of_its_parts_is_kept_where_it_is_short(metadata: Any, kept: dict[str, Any]) -> None:
    fold = new_fold()
    take(fold, "display_data", {"data": {"text/plain": "1"}, "metadata": metadata})
    assert events(fold)[1][1]["metadata"] == kept


FRAMES = {
    name: f"Cell In[1], line {line}, in {name}(n)\n----> {line}     call()\n" for line, name in enumerate("fgh", 1)
}


@pytest.mark.parametrize("functions", ["f", "fg", "fgh"])
def test_the_frames_of_a_recursion_are_counted(functions: str) -> None:
    fold = new_fold(Limits())
    frames = [FRAMES[name] for name in functions] * 990
    error(
        fold, "RecursionError", "maximum depth", "-----", "Cell In[1], line 9", *frames, "RecursionError: maximum depth"
    )
    result = fold.finish(fold.ended_status(), None, None)
    assert result.error is not None
    assert result.error.startswith("-----\nCell In[1], line 9\nCell In[1], line 1, in f(n)")
    assert result.error.endswith("repeated 989 more times ...]\n\nRecursionError: maximum depth")
    assert [result.error.count(f"in {name}(n)") for name in functions] == [1] * len(functions)
    assert not result.truncated


def test_frames_that_differ_are_left_out_in_the_middle() -> None:
    fold = new_fold(Limits())
    error(fold, "E", "v", *(f"frame {number}" for number in range(1000)), "E: v")
    result = fold.finish(fold.ended_status(), None, None)
    assert result.exception is not None
    assert result.exception.traceback[:2] == ("frame 0", "frame 1")
    assert result.exception.traceback[-2:] == ("frame 999", "E: v")
    assert "[... 801 frames left out ...]" in result.exception.traceback


@pytest.mark.parametrize(
    "frames",
    [[""] * 9_000, [" ", "\n", ""] * 3_000, ["", "x"] * 4_500],
    ids=["nothing", "white space", "every other one"],
)
def test_a_traceback_of_empty_frames_takes_no_time(frames: list[str]) -> None:
    fold = new_fold(Limits())
    started_s = time.process_time()
    error(fold, "E", "v", *frames, "E: v")
    assert time.process_time() - started_s < 1
    result = fold.finish(fold.ended_status(), None, None)
    assert (result.error or "").endswith("E: v")


def test_three_frames_alike_are_shown() -> None:
    fold = new_fold(Limits())
    error(fold, "E", "v", *[FRAMES["f"]] * 3, "E: v")
    result = fold.finish(fold.ended_status(), None, None)
    assert (result.error or "").count("in f(n)") == 3


def test_the_end_of_a_traceback_that_is_too_long_is_kept() -> None:
    fold = new_fold(Limits(output_bytes=1000))
    error(fold, "E", "", "first", "x" * 5000, "E: the reason")
    result = fold.finish(fold.ended_status(), None, None)
    assert (result.error or "").startswith("first\nxxx")
    assert (result.error or "").endswith("xxx\nE: the reason")
    assert len(result.error or "") <= 1000
    assert result.truncated
