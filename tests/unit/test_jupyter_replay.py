"""A run told to a Jupyter client from its events: one message for each that a notebook shows, and the end."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from jupyter_talk import content

from gateway.http.base.limits import HttpBounds
from gateway.http.base.outgoing import AnswerRoom
from gateway.http.jupyter.replay import replay_run
from sessions.errors import Gone, NotFound, StoreUnavailable, Unavailable
from sessions.jupyter.messages import ClientMessage
from sessions.model import (
    Artifact,
    ArtifactId,
    ArtifactKind,
    ArtifactRef,
    Event,
    EventType,
    GatewayId,
    JupyterRequest,
    Result,
    Run,
    RunId,
    RunRecord,
    RunStatus,
    TenantId,
)

RUN, TENANT = RunId("r"), TenantId("t")
HEADER = {"msg_id": "mine", "msg_type": "execute_request", "session": "s"}
JUPYTER = JupyterRequest(HEADER, {}, {}, "lab")
PNG = b"\x89PNG"
SVG = b"<svg/>"
STARTED = (EventType.STARTED, {"execution_count": None})
END = (EventType.END, {})


class Story:
    """A run that has ended, or is cut short: what a `RunReader` says of it. `faults` come first."""

    def __init__(self, *events: tuple[EventType, Mapping[str, Any]], status: RunStatus = RunStatus.OK) -> None:
        run = Run(RUN, TENANT, GatewayId("g"), "python", "code", {}, 1.0, datetime.now(UTC), jupyter=JUPYTER)
        result = Result(RUN, status, "", error="why" if status is not RunStatus.OK else None, execution_count=7)
        self.record = RunRecord(run, 1, status, result=result)
        self.events = [Event(seq, type_, fields) for seq, (type_, fields) in enumerate(events, 1)]
        self.artifacts: dict[str, Artifact] = {}
        self.waits = False
        self.is_one_batch = False
        self.faults: list[Exception] = []
        self.breaks_after: int | None = None

    async def get_run(self, tenant: TenantId, run_id: RunId) -> RunRecord:
        assert (tenant, run_id) == (TENANT, RUN)
        if self.faults:
            raise self.faults.pop(0)
        return self.record

    async def run_bytes(self, run_id: RunId) -> int:
        assert run_id == RUN
        return 100

    async def follow(self, run_id: RunId, after: int) -> AsyncIterator[Sequence[Event]]:
        assert (run_id, after) == (RUN, 0)
        for index, event in enumerate(self.events):
            if index == self.breaks_after:
                self.breaks_after = None
                raise StoreUnavailable
            if not self.is_one_batch:
                yield [event]
        if self.is_one_batch:
            yield self.events

    async def artifact(self, artifact_id: ArtifactId) -> Artifact:
        if artifact_id not in self.artifacts:
            raise NotFound
        return self.artifacts[artifact_id]

    def waits_for_input(self, run_id: RunId) -> bool:
        assert run_id == RUN
        return self.waits

    def image(self, name: str, content_type: str, data: bytes) -> tuple[EventType, Mapping[str, Any]]:
        ref = ArtifactRef(ArtifactId(f"id of {name}"), ArtifactKind.IMAGE, name, content_type, len(data))
        self.artifacts[ref.id] = Artifact(ref, data)
        return EventType.IMAGE, _image(name, content_type, len(data))

    async def told(self, client: str = "lab") -> list[ClientMessage]:
        return [message async for message in replay_run(self, TENANT, RUN, client, retry_s=0.001)]


def _image(name: str, content_type: str, size_bytes: int) -> dict[str, Any]:
    return {"artifact_id": f"id of {name}", "name": name, "content_type": content_type, "bytes": size_bytes}


def shown(data: Mapping[str, Any], *, is_main: bool = False, display_id: str | None = None) -> dict[str, Any]:
    return {"data": data, "metadata": {"m": 1}, "is_main_result": is_main, "display_id": display_id}


def body(messages: list[ClientMessage]) -> list[tuple[str, dict[str, Any]]]:
    """What stands between the beginning and the end."""
    pairs = [(message.msg_type, content(message)) for message in messages]
    assert pairs[0] == ("status", {"execution_state": "busy"})
    assert [kind for kind, _ in pairs[1:3]] == ["execute_input", "clear_output"]
    assert [kind for kind, _ in pairs[-2:]] == ["execute_reply", "status"]
    return pairs[3:-2]


async def test_every_event_is_told_as_the_message_that_it_came_from() -> None:
    story = Story(
        STARTED,
        (EventType.STDOUT, {"text": "out"}),
        (EventType.STDERR, {"text": "err"}),
        (EventType.RESULT, shown({"text/plain": "7"}, is_main=True)),
        (EventType.RESULT, shown({"text/plain": "d"}, display_id="d")),
        (EventType.UPDATE, {"data": {"text/plain": "e"}, "display_id": "d"}),
        (EventType.CLEAR, {"wait": True}),
        (EventType.FILE, _image("f", "text/plain", 1)),
        (EventType.TRUNCATED, {"what": "output", "dropped_bytes": 1}),
        (EventType.ERROR, {"name": "E", "value": "v", "traceback": ["t"]}),
        END,
        status=RunStatus.ERROR,
    )
    messages = await story.told()
    main = {"data": {"text/plain": "7"}, "metadata": {"m": 1}, "execution_count": 7, "transient": {}}
    assert body(messages) == [
        ("stream", {"name": "stdout", "text": "out"}),
        ("stream", {"name": "stderr", "text": "err"}),
        ("execute_result", main),
        ("display_data", {"data": {"text/plain": "d"}, "metadata": {"m": 1}, "transient": {"display_id": "d"}}),
        ("update_display_data", {"data": {"text/plain": "e"}, "metadata": {}, "transient": {"display_id": "d"}}),
        ("clear_output", {"wait": True}),
        ("error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
    ]
    assert all(message.parent_header == HEADER for message in messages)
    assert [message.channel for message in messages if message.channel != "iopub"] == ["shell"]


def test_no_type_of_event_is_forgotten() -> None:
    untold = {EventType.STARTED, EventType.FILE, EventType.TRUNCATED, EventType.END, EventType.INPUT_REQUEST}
    told = {"STDOUT", "STDERR", "RESULT", "UPDATE", "CLEAR", "ERROR", "IMAGE"}
    assert {type_.name for type_ in set(EventType) - untold} == told


async def test_images_are_told_as_the_kernel_told_them() -> None:
    story = Story()
    png, svg = story.image("p.png", "image/png", PNG), story.image("s.svg", "image/svg+xml", SVG)
    gone = (EventType.IMAGE, _image("gone.png", "image/png", 1))
    results = [
        (EventType.RESULT, shown({"text/plain": "fig", "image": name})) for name in ("p.png", "s.svg", "gone.png")
    ]
    updated = (EventType.UPDATE, {"data": {"image": "p.png"}, "display_id": "d"})
    story.events = [
        Event(seq, type_, fields) for seq, (type_, fields) in enumerate([png, svg, gone, *results, updated, END], 1)
    ]
    told = [fields["data"] for _, fields in body(await story.told())]
    assert told == [
        {"text/plain": "fig", "image/png": base64.b64encode(PNG).decode()},
        {"text/plain": "fig", "image/svg+xml": SVG.decode()},
        {"text/plain": "fig"},
        {"image/png": base64.b64encode(PNG).decode()},
    ]


async def test_an_end_without_an_error_event_says_why_and_one_with_it_does_not_say_it_twice() -> None:
    messages = await Story(STARTED, END, status=RunStatus.TIMEOUT).told()
    assert body(messages) == [("error", {"ename": "Timeout", "evalue": "why", "traceback": ["Timeout: why"]})]
    error = (EventType.ERROR, {"name": "E", "value": "v", "traceback": []})
    messages = await Story(STARTED, error, END, status=RunStatus.ERROR).told()
    assert [kind for kind, _ in body(messages)] == ["error"]
    reply = content(messages[-2])
    assert (reply["status"], reply["execution_count"]) == ("error", 7)


async def test_only_who_asked_gets_the_reply_and_the_question() -> None:
    story = Story(STARTED, (EventType.INPUT_REQUEST, {"prompt": "? ", "password": False}), END)
    story.waits = True
    mine = [message.msg_type for message in await story.told() if message.channel != "iopub"]
    assert mine == ["input_request", "execute_reply"]
    assert [message for message in await story.told("other") if message.channel != "iopub"] == []


async def test_of_several_questions_only_the_last_one_can_be_open() -> None:
    questions = [(EventType.INPUT_REQUEST, {"prompt": prompt, "password": False}) for prompt in ("1? ", "2? ")]
    story = Story(STARTED, *questions)
    story.waits = story.is_one_batch = True
    told = await story.told()
    assert [content(message)["prompt"] for message in told if message.channel == "stdin"] == ["2? "]


async def test_a_question_is_asked_again_though_a_thread_has_printed_since() -> None:
    question = (EventType.INPUT_REQUEST, {"prompt": "? ", "password": False})
    story = Story(STARTED, question, (EventType.STDOUT, {"text": "tick"}))
    story.waits = story.is_one_batch = True
    assert [message.msg_type for message in await story.told()][-2:] == ["stream", "input_request"]


async def test_a_run_that_no_jupyter_client_asked_for_is_told_to_all_and_replied_to_none() -> None:
    story = Story(STARTED, (EventType.STDOUT, {"text": "x"}), END)
    story.record = replace(story.record, run=replace(story.record.run, jupyter=None))
    messages = await story.told()
    assert [message.msg_type for message in messages] == ["status", "execute_input", "clear_output", "stream", "status"]
    assert {message.parent_id for message in messages} == {RUN}


async def test_what_is_kept_out_of_the_history_is_no_input() -> None:
    story = Story(STARTED, END)
    silent = replace(JUPYTER, content={"silent": True})
    story.record = replace(story.record, run=replace(story.record.run, jupyter=silent))
    assert "execute_input" not in [message.msg_type for message in await story.told()]


async def test_when_the_database_goes_away_it_begins_anew_and_clears_first() -> None:
    story = Story(STARTED, (EventType.STDOUT, {"text": "x"}), END)
    story.faults, story.breaks_after = [StoreUnavailable()], 2
    kinds = [message.msg_type for message in await story.told()]
    beginning = ["status", "execute_input", "clear_output", "stream"]
    assert kinds == [*beginning, *beginning, "execute_reply", "status"]


@pytest.mark.parametrize("error", [NotFound(), Gone()])
async def test_nothing_is_told_of_a_run_that_is_gone(error: Exception) -> None:
    story = Story(STARTED, END)
    story.faults = [error]
    assert await story.told() == []


async def test_a_gateway_that_stops_does_not_say_that_the_run_has_ended() -> None:
    messages = await Story(STARTED, (EventType.STDOUT, {"text": "x"})).told()
    assert [message.msg_type for message in messages][-1] == "stream"


async def test_an_image_is_not_read_before_there_is_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    story, answers = Story(), AnswerRoom(HttpBounds(answers_bytes=4 << 20, answer_wait_s=0.05))
    png = story.image("p.png", "image/png", PNG + bytes(1 << 20))
    result = (EventType.RESULT, shown({"text/plain": "fig", "image": "p.png"}))
    story.events = Story(STARTED, png, result, END).events
    read: list[ArtifactId] = []
    artifact = story.artifact

    async def noted(artifact_id: ArtifactId) -> Artifact:
        read.append(artifact_id)
        return await artifact(artifact_id)

    monkeypatch.setattr(story, "artifact", noted)
    other = answers.place()
    await other.take(4 << 20)

    async def told() -> int:
        with answers.place() as place:
            messages = replay_run(story, TENANT, RUN, "lab", retry_s=0.001, place=place)
            return len([message async for message in messages])

    with pytest.raises(Unavailable):
        await told()
    assert read == []
    other.leave()
    assert await told() > 4
    assert read
