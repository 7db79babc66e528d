"""A session as a notebook: what was shown, folded from events, and cells that a kernel runs again."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.render import notebook
from gateway.http.render.answer import strict_json
from gateway.http.render.outputs import NotebookRun, final_outputs
from sessions.languages import python_literal
from sessions.model import Event, EventType, GatewayId, Result, Run, RunId, RunRecord, RunStatus, TenantId

RUN_ID = RunId("0f000000-0000-4000-8000-000000000000")
AT = datetime(2026, 1, 1, tzinfo=UTC)


def record(
    status: RunStatus = RunStatus.OK, *, code: str = "1", variables: dict[str, Any] | None = None, error: str = ""
) -> RunRecord:
    run = Run(RUN_ID, TenantId("t"), GatewayId("g"), "python", code, variables or {}, 30.0, AT)
    result = Result(RUN_ID, status, "", execution_count=7, error=error or None)
    return RunRecord(run, 1, status, AT, result=result)


def events(*several: tuple[EventType, dict[str, Any]]) -> list[Event]:
    return [Event(seq, kind, fields) for seq, (kind, fields) in enumerate(several, start=1)]


def result(data: dict[str, Any], display_id: str | None = None, *, is_main: bool = False) -> tuple[EventType, Any]:
    fields = {"data": data, "metadata": {}, "display_id": display_id, "is_main_result": is_main}
    return EventType.RESULT, fields


def image(name: str, artifact_id: str, content_type: str = "image/png") -> tuple[EventType, Any]:
    fields = {"name": name, "artifact_id": artifact_id, "content_type": content_type, "bytes": 3}
    return EventType.IMAGE, fields


def out(text: str) -> tuple[EventType, Any]:
    return EventType.STDOUT, {"text": text}


def built(
    several: Sequence[tuple[EventType, Any]],
    images: dict[str, bytes] | None = None,
    of: RunRecord | None = None,
    kernel_name: str = "python3",
) -> Any:
    """The notebook as a reader gets it: written, read back, and valid."""
    of = of or record()
    count = of.result.execution_count if of.result is not None else None
    run = NotebookRun(of.run, count, final_outputs(of, events(*several)), images or {})
    document = strict_json(notebook.notebook([run], language="python", kernel_name=kernel_name))
    read = nbformat.reads(document.decode(), as_version=4)
    nbformat.validate(read)
    assert (read.nbformat, read.nbformat_minor) == (4, 5)
    return read


def outputs(several: Sequence[tuple[EventType, Any]], **given_: Any) -> list[Any]:
    shown: list[Any] = built(several, **given_).cells[-1].outputs
    return shown


def test_a_run_is_a_cell_with_its_code_and_count() -> None:
    read = built([(EventType.STARTED, {"execution_count": 7}), (EventType.END, {})], of=record(code="print(1)"))
    [cell] = read.cells
    assert (cell.cell_type, cell.source, cell.execution_count, cell.id) == ("code", "print(1)", 7, RUN_ID)
    assert cell.outputs == []
    assert read.metadata.kernelspec == {"name": "python3", "display_name": "Python", "language": "python"}


def test_text_of_one_stream_is_one_output_and_the_streams_stay_in_order() -> None:
    shown = outputs([out("a"), out("b"), (EventType.STDERR, {"text": "c"}), out("d")])
    assert [(one.name, one.text) for one in shown] == [("stdout", "ab"), ("stderr", "c"), ("stdout", "d")]


def test_results_are_displays_and_the_last_expression_is_the_result() -> None:
    display, main = outputs([result({"text/html": "<b>"}), result({"text/plain": "42"}, is_main=True)])
    assert (display.output_type, display.data) == ("display_data", {"text/html": "<b>"})
    assert (main.output_type, main.data, main.execution_count) == ("execute_result", {"text/plain": "42"}, 7)


def test_a_figure_is_embedded_and_saved_files_are_not() -> None:
    [shown] = outputs(
        [
            image("figure-1.png", "a"),
            result({"image": "figure-1.png", "text/plain": "<Figure>"}),
            image("saved.png", "b"),
            (EventType.FILE, {"name": "t.csv", "artifact_id": "c", "content_type": "text/csv", "bytes": 1}),
        ],
        images={"a": b"PNG", "b": b"no"},
    )
    assert shown.data == {"text/plain": "<Figure>", "image/png": base64.b64encode(b"PNG").decode()}


def test_an_svg_is_text() -> None:
    [shown] = outputs(
        [image("figure-1.svg", "a", "image/svg+xml"), result({"image": "figure-1.svg"})], images={"a": b"<svg>\xff"}
    )
    assert shown.data == {"image/svg+xml": "<svg>\ufffd"}


def test_an_image_that_is_not_there_any_more_leaves_the_rest() -> None:
    [shown] = outputs([image("figure-1.png", "a"), result({"image": "figure-1.png", "text/plain": "<Figure>"})])
    assert shown.data == {"text/plain": "<Figure>"}


def test_an_update_changes_what_was_shown_before_it_and_nothing_after() -> None:
    shown = outputs(
        [
            result({"text/plain": "old"}, "d"),
            result({"text/plain": "other"}, "e"),
            result({"text/plain": "old too"}, "d"),
            (EventType.UPDATE, {"data": {"text/plain": "between"}, "display_id": "d"}),
            (EventType.UPDATE, {"data": {"text/plain": "new"}, "display_id": "d"}),
            result({"text/plain": "later"}, "d"),
            result({"text/plain": "none"}),
        ]
    )
    assert [one.data["text/plain"] for one in shown] == ["new", "other", "new", "later", "none"]


def test_a_figure_that_was_updated_is_the_new_one() -> None:
    [shown] = outputs(
        [
            image("figure-1.png", "a"),
            result({"image": "figure-1.png"}, "d"),
            image("figure-1.png", "b"),
            (EventType.UPDATE, {"data": {"image": "figure-1.png"}, "display_id": "d"}),
        ],
        images={"a": b"old", "b": b"new"},
    )
    assert base64.b64decode(shown.data["image/png"]) == b"new"


def test_clearing_clears_at_once_or_with_the_next_output() -> None:
    clear, wait = (EventType.CLEAR, {"wait": False}), (EventType.CLEAR, {"wait": True})
    assert [one.text for one in outputs([out("a"), clear, out("b")])] == ["b"]
    assert [one.text for one in outputs([out("a"), wait, out("b"), out("c")])] == ["bc"]
    assert [one.text for one in outputs([out("a"), wait])] == ["a"]


def test_an_exception_is_an_error_output() -> None:
    fields = {"name": "ValueError", "value": "x", "traceback": ["one", "two"]}
    [shown] = outputs([(EventType.ERROR, fields)], of=record(RunStatus.ERROR, error="one\ntwo"))
    assert (shown.output_type, shown.ename, shown.evalue, shown.traceback) == (
        "error",
        "ValueError",
        "x",
        ["one", "two"],
    )


@pytest.mark.parametrize("status", [RunStatus.OOM, RunStatus.KERNEL_DIED, RunStatus.CANCELLED, RunStatus.LOST])
def test_an_end_without_an_exception_is_told_too(status: RunStatus) -> None:
    first, last = outputs([out("so far")], of=record(status, error="It was killed."))
    assert first.text == "so far"
    assert (last.output_type, last.ename, last.evalue) == ("error", status.value, "It was killed.")


@pytest.mark.parametrize(
    "data",
    [
        {"text/plain": {"a": 1}},
        {"text/plain": None},
        {"": 1},
        {"x": ["a", 1]},
        {"application/json": [1, {"a": None}]},
        {"application/vnd.x+json": 7},
        {"text/plain": "\ud800\x00"},
        {"image": "never shown"},
        {"image": ["x"]},
    ],
)
def test_every_bundle_that_hostile_code_shows_makes_a_valid_notebook(data: dict[str, Any]) -> None:
    assert len(outputs([result(data, is_main=True)])) == 1


def test_code_that_utf8_cannot_say_still_makes_a_notebook() -> None:
    assert built([], of=record(code="'\ud800\x00'")).cells[0].source == "'\ufffd\x00'"


def test_variables_are_set_by_a_tagged_cell_before_the_code() -> None:
    variables = {"x": 1, "name": 'it\'s "so"\n\ud800\x00三', "deep": {"a": [None, True, 1.5, {"": []}]}}
    first, second = built([], of=record(code="x", variables=variables)).cells
    assert first.metadata.tags == ["injected-parameters"]
    scope: dict[str, Any] = {}
    exec(first.source, scope)  # noqa: S102 - that it runs is the point
    assert {name: scope[name] for name in variables} == variables
    assert (first.id, second.source) == (f"{RUN_ID}-variables", "x")


def test_older_runs_that_are_left_out_are_told_of_at_the_top() -> None:
    run = NotebookRun(record(code="x").run, None, [])
    document = notebook.notebook([run], language="python", kernel_name="python3", has_older=True)
    nbformat.validate(document)
    first, second = document.cells
    assert (first.cell_type, second.source) == ("markdown", "x")
    assert first.source.startswith("**Older runs were left out**")


def test_another_language_gets_no_python() -> None:
    assert len(built([], of=record(variables={"x": 1}), kernel_name="ir").cells) == 1
    cell, _ = built([], of=record(variables={"x": [1]}), kernel_name="bash").cells
    assert cell["source"] == "export x='[1]'"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec=None)), inner),
        max_leaves=10,
    )
)
def test_every_json_value_is_a_literal_that_utf8_can_say(value: Any) -> None:
    literal = python_literal(value)
    literal.encode()
    assert eval(literal) == value  # noqa: S307 - that it evaluates is the point


def test_numbers_that_are_not_finite_are_literals_too() -> None:
    assert python_literal([float("inf"), float("-inf")]) == '[float("inf"), float("-inf")]'
    assert eval(python_literal(float("nan"))) != eval(python_literal(float("nan")))  # noqa: S307


@pytest.mark.timeout(10)
def test_very_many_events_are_folded_in_linear_time() -> None:
    many = [out("x" * 100) for _ in range(20_000)]
    many += [result({"text/plain": "a"}, "d") for _ in range(1000)]
    many += [(EventType.UPDATE, {"data": {"text/plain": "b"}, "display_id": "d"}) for _ in range(10_000)]
    shown = final_outputs(record(), events(*many))
    assert len(shown) == 1001
    assert len(json.dumps(shown[0].content)) > 2_000_000
    assert shown[-1].content["data"] == {"text/plain": "b"}
