"""The Python client against answers that the test lays out: what it sends, when it asks again, and what it raises."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from gateway.client import (
    AsyncClient,
    Client,
    Conflict,
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    RunFailed,
    ServerError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    calls,
    transport,
)
from gateway.client.calls import Patience, run_fields

ANSWER = {"run_id": "r", "status": "ok", "output": "hi\n"}
Handler = Callable[[httpx.Request], httpx.Response]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if seconds:
            self.pauses.append(seconds)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(transport.time, "sleep", clock.sleep)
    monkeypatch.setattr(transport.Transport, "patience", lambda self: Patience(self._patience_s, lambda: clock.now_s))
    return clock


class Script:
    """A gateway that answers with one thing after the other; an exception is a connection that fails."""

    def __init__(self, *answers: httpx.Response | Exception | Handler) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.client = Client(
            "http://gateway:1", "secret", http=httpx.Client(transport=httpx.MockTransport(self._answer))
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else answer(request)

    def body(self, number: int = 0) -> Any:
        return json.loads(self.requests[number].content)


def ok(**fields: Any) -> httpx.Response:
    return httpx.Response(200, json={**ANSWER, **fields})


def refused(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"error": "Not now.", "code": code, "request_id": "q"}
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): text for name, text in headers.items()})


def sse(*events: dict[str, Any], cut: bool = False) -> httpx.Response:
    """A stream of these events, which breaks behind them when it is `cut`."""

    def pieces() -> Iterator[bytes]:
        for event in events:
            yield f"id: {event['seq']}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n: keep-alive\n\n".encode()
        if cut:
            raise httpx.ReadError("cut")

    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=pieces())


def event(seq: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"run_id": "r", "seq": seq, "type": kind, **fields}


END = event(3, "end", status="ok", output="hi\n")
DOWN = httpx.ConnectError("refused")


# --- what is sent


def test_a_run_is_a_post_with_a_token_and_a_key_of_its_own() -> None:
    script = Script(ok(), ok())
    result = script.client.run("1", variables={"x": 1}, files={"a.csv": "1,2", "b": b"\0"}, fetch=["c"], timeout=3)
    script.client.run("1")
    assert (result.status, result.output, result.ok) == ("ok", "hi\n", True)
    request = script.requests[0]
    assert (request.method, request.url.path) == ("POST", "/runcode")
    assert request.headers["Authorization"] == "Bearer secret"
    assert script.body() == {
        "code": "1",
        "variables": {"x": 1},
        "files": {"a.csv": {"text": "1,2"}, "b": {"base64": "AA=="}},
        "fetch": ["c"],
        "timeout": 3,
    }
    keys = {sent.headers["Idempotency-Key"] for sent in script.requests}
    assert len(keys) == 2


def test_address_and_token_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLBLOCK_URL", "https://host/below/")
    monkeypatch.setenv("CELLBLOCK_TOKEN", "t")
    seen: list[httpx.Request] = []
    http = httpx.Client(transport=httpx.MockTransport(lambda request: seen.append(request) or ok()))
    Client(http=http).run("1")
    assert str(seen[0].url) == "https://host/below/runcode"
    assert seen[0].headers["Authorization"] == "Bearer t"


def test_what_is_no_address_is_said_at_once() -> None:
    with pytest.raises(ValueError, match="http://"):
        Client("localhost:8000")


@pytest.mark.parametrize(
    ("url", "token"), [("http://host:port", ""), ("http://host", "sécret"), ("http://host", "secret\n")]
)
def test_what_no_request_can_carry_is_said_at_once(url: str, token: str) -> None:
    with pytest.raises(ValueError, match=r"address|token"):
        Client(url, token)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "gateway"])
def test_no_proxy_leads_to_this_machine(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setattr(calls, "READ_TIMEOUT_S", 0.5)
        with pytest.raises(ConnectionFailed), Client(f"http://{host}:1", patience_s=0) as client:
            client.run("1")
        proxy.setblocking(False)  # noqa: FBT003
        if host == "gateway":
            proxy.accept()[0].close()
        else:
            with pytest.raises(BlockingIOError):
                proxy.accept()


def test_lone_surrogates_travel_and_nan_does_not() -> None:
    script = Script(ok())
    script.client.run("'\ud800'")
    assert script.body()["code"] == "'\ud800'"
    with pytest.raises(ValueError, match="JSON"):
        script.client.run("1", variables={"x": float("nan")})


def test_an_argument_that_there_is_not_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="tiemout"):
        run_fields("1", tiemout=3)  # type: ignore[call-arg]


# --- when it asks again


@pytest.mark.parametrize("first", [DOWN, httpx.ReadError("reset"), httpx.ReadTimeout("slow")])
def test_a_broken_connection_gives_the_same_run_over_a_stream(clock: Clock, first: Exception) -> None:
    script = Script(first, DOWN, sse(event(1, "started"), END))
    assert script.client.run("1").output == "hi\n"
    assert {request.headers["Idempotency-Key"] for request in script.requests} == {
        script.requests[0].headers["Idempotency-Key"]
    }
    assert script.requests[-1].headers["Accept"] == "text/event-stream"
    assert len(clock.pauses) == 2


def test_a_stream_that_ends_without_an_end_is_asked_for_again(clock: Clock) -> None:
    script = Script(DOWN, sse(event(1, "started")), sse(event(1, "started"), END))
    assert script.client.run("1").ok
    assert len(clock.pauses) == 2


def test_retry_after_is_kept_to(clock: Clock) -> None:
    script = Script(refused(429, "too_many_requests", Retry_After="7"), refused(503, "unavailable"), ok())
    assert script.client.run("1").ok
    assert 7 <= clock.pauses[0] < 8
    assert clock.pauses[1] < 1


def test_patience_ends(clock: Clock) -> None:
    script = Script(*[DOWN] * 1000)
    with pytest.raises(ConnectionFailed, match="No gateway answers at http://gateway:1"):
        script.client.run("1")
    assert 50 < clock.now_s <= 60
    script = Script(refused(503, "unavailable", Retry_After="61"))
    with pytest.raises(Unavailable) as raised:
        script.client.run("1")
    assert (raised.value.retry_after_s, raised.value.code, raised.value.request_id) == (61, "unavailable", "q")


def test_a_long_run_does_not_use_up_patience(clock: Clock) -> None:
    def after_an_hour(_: httpx.Request) -> httpx.Response:
        clock.now_s += 3600
        raise httpx.ReadTimeout("slow")

    script = Script(after_an_hour, sse(event(1, "started"), END))
    assert script.client.run("1").ok


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(400, "invalid_request", InvalidRequest), (401, "unauthorized", Unauthorized), (409, "conflict", Conflict)],
)
def test_what_waiting_does_not_help_is_raised_at_once(clock: Clock, status: int, code: str, kind: type) -> None:
    with pytest.raises(kind, match=r"Not now\."):
        Script(refused(status, code)).client.run("1")
    assert not clock.pauses


def test_an_end_that_was_not_stored_is_not_asked_for_again(clock: Clock) -> None:
    script = Script(refused(500, "end_not_stored"))
    with pytest.raises(ServerError) as raised:
        script.client.run("1")
    assert raised.value.code == "end_not_stored"
    assert not clock.pauses


def test_a_timed_out_run_is_a_result(clock: Clock) -> None:
    body = {**ANSWER, "status": "timeout", "error": "too long", "code": "timeout", "request_id": "q"}
    result = Script(httpx.Response(504, json=body)).client.run("1")
    assert (result.status, result.output) == ("timeout", "hi\n")
    with pytest.raises(RunFailed, match="too long"):
        result.check()
    assert not clock.pauses


def test_a_proxys_error_page_is_waited_out() -> None:
    script = Script(httpx.Response(502, text="<h1>Bad gateway</h1>"), ok())
    assert script.client.run("1").ok
    with pytest.raises(ServerError, match="Not a gateway"):
        Script(httpx.Response(500, text="Not a gateway")).client.run("1")


@pytest.mark.parametrize("status", [200, 301, 307])
def test_a_page_or_a_redirection_is_no_answer_of_a_gateway(status: int) -> None:
    script = Script(*[httpx.Response(status, text="<html>\n") for _ in range(4)])
    for call in (script.client.run, script.client.get_run, lambda text: list(script.client.stream(text))):
        with pytest.raises(ServerError, match="<html>"):
            call("1")


def test_a_redirection_writes_no_file() -> None:
    script = Script(httpx.Response(201, json=SESSION), httpx.Response(301, headers={"Location": "https://host/"}))
    with pytest.raises(ServerError):
        script.client.session("s").files.write("a", "text")


def test_patience_ends_with_streams_that_have_no_event(clock: Clock) -> None:
    script = Script(DOWN, *[httpx.Response(200, text="nothing") for _ in range(100)])
    with pytest.raises(ConnectionFailed):
        script.client.run("1")
    assert clock.now_s <= 60.0


def test_an_event_that_was_cut_is_asked_for_again() -> None:
    cut = httpx.Response(200, content=b'data: {"run_id": "r", "seq": 1, "type": "en')
    assert Script(DOWN, cut, sse(END)).client.run("1").output == "hi\n"


def test_what_is_not_repeatable_is_asked_once(clock: Clock) -> None:
    script = Script(httpx.Response(201, json={**SESSION}), httpx.ReadError("reset"), httpx.Response(200, json=SESSION))
    session = script.client.session()
    with pytest.raises(ConnectionFailed):
        session.restart()
    assert not clock.pauses


# --- events


def test_events_go_on_behind_the_last_one(clock: Clock) -> None:
    script = Script(
        sse(event(1, "started"), event(2, "stdout", text="hi\n"), cut=True),
        DOWN,
        sse(event(2, "stdout", text="hi\n"), END),
    )
    events = list(script.client.stream("1"))
    assert [(sent.seq, sent.type) for sent in events] == [(1, "started"), (2, "stdout"), (3, "end")]
    assert script.requests[-1].url.path == "/runs/r/events"
    assert script.requests[-1].url.params["after"] == "2"
    assert script.client.result_of(events[-1]).output == "hi\n"
    assert len(clock.pauses) == 2


def test_a_stream_that_breaks_before_its_first_event_sends_the_same_key() -> None:
    script = Script(sse(cut=True), sse(event(1, "started"), END))
    assert len(list(script.client.stream("1"))) == 2
    first, second = script.requests
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


def test_a_refused_stream_raises() -> None:
    with pytest.raises(InvalidRequest):
        list(Script(refused(400, "invalid_request")).client.stream("1"))
    with pytest.raises(TooManyRequests):
        list(Script(*[refused(429, "too_many_requests", Retry_After="5")] * 20).client.stream("1"))


# --- batches


def lines(*answers: dict[str, Any], cut: bool = False) -> httpx.Response:
    def pieces() -> Iterator[bytes]:
        for answer in answers:
            yield json.dumps(answer).encode() + b"\n"
        if cut:
            raise httpx.ReadError("cut")

    return httpx.Response(200, headers={"Content-Type": "application/x-ndjson"}, content=pieces())


def answer_to(place: int, **fields: Any) -> dict[str, Any]:
    return {"id": place, "status_code": 200, **ANSWER, **fields}


def test_a_cut_batch_asks_for_what_is_left_under_the_same_keys() -> None:
    bad = {"id": 1, "status_code": 400, "error": "No.", "code": "invalid_request", "request_id": "q"}
    script = Script(lines(answer_to(2), bad, cut=True), lines(answer_to(0)))
    answers = list(script.client.batch(["a", {"code": "b", "timeout": 5}, "c"]))
    assert [answer.place for answer in answers] == [2, 1, 0]
    assert isinstance(answers[1].error, InvalidRequest)
    assert answers[0].result is not None
    first, second = script.body(0)["runs"], script.body(1)["runs"]
    assert second == [first[0]]
    assert len({item["idempotency_key"] for item in first}) == 3


def test_only_a_line_feed_ends_a_line_of_a_batch() -> None:
    text = "a\u2028b\u0085c\x1cd\re\u00e9"
    line = json.dumps({"id": 0, "status_code": 200, **ANSWER, "output": text}, ensure_ascii=False).encode() + b"\n"
    pieces = [line[start : start + 1] for start in range(len(line))]
    script = Script(httpx.Response(200, content=iter(pieces)))
    assert [answer.result and answer.result.output for answer in script.client.batch(["1"])] == [text]


def test_a_line_that_was_cut_is_asked_for_again() -> None:
    line = json.dumps({"id": 0, "status_code": 200, **ANSWER}).encode()
    script = Script(httpx.Response(200, content=line[:-5]), httpx.Response(200, content=line + b"\n"))
    assert [answer.result and answer.result.output for answer in script.client.batch(["1"])] == ["hi\n"]
    assert script.body(0) == script.body(1)


def test_a_batch_of_more_than_a_request_may_have_is_several(clock: Clock) -> None:
    def all_of(request: httpx.Request) -> httpx.Response:
        return lines(*[answer_to(item["id"]) for item in json.loads(request.content)["runs"]])

    script = Script(all_of, all_of, all_of)
    assert len(list(script.client.batch(["1"] * 2500))) == 2500
    assert [len(script.body(number)["runs"]) for number in range(3)] == [1000, 1000, 500]
    assert not clock.pauses


# --- sessions

SESSION = {
    "session_id": "s",
    "kernel_id": "k",
    "language": "python",
    "state": "idle",
    "created_at": "2026-01-31T12:00:00.000000Z",
    "last_used_at": "2026-01-31T12:00:00.000000Z",
    "expires_at": "2026-01-31T12:30:00.000000Z",
    "runs": 0,
    "usage": {"wall_ms": 0.0, "cpu_ms": 0.0, "memory_peak_bytes": 0},
}


def test_a_session_that_was_made_ends_with_its_block() -> None:
    script = Script(httpx.Response(201, json=SESSION), ok(), httpx.Response(204))
    with script.client.session("s") as session:
        session.run("1")
    assert [(sent.method, sent.url.path) for sent in script.requests] == [
        ("POST", "/sessions"),
        ("POST", "/runcode"),
        ("DELETE", "/sessions/s"),
    ]
    assert script.body(1)["session_id"] == "s"


async def test_a_session_whose_block_is_cancelled_before_it_begins_is_ended() -> None:
    asked: list[str] = []
    is_made = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if request.method == "DELETE":
            return httpx.Response(204)
        is_made.set()
        await asyncio.sleep(0.01)
        return httpx.Response(201, json=SESSION)

    async def block(client: AsyncClient) -> None:
        async with client.session("s"):
            raise AssertionError

    async with AsyncClient("http://gateway:1", http=httpx.AsyncClient(transport=httpx.MockTransport(answer))) as client:
        opening = asyncio.ensure_future(block(client))
        await is_made.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
    assert asked == ["POST /sessions", "DELETE /sessions/s"]


@pytest.mark.parametrize("keep", [False, True])
def test_a_session_that_was_there_or_is_kept_stays(*, keep: bool) -> None:
    made = (
        [httpx.Response(201, json=SESSION)] if keep else [refused(409, "conflict"), httpx.Response(200, json=SESSION)]
    )
    script = Script(*made)
    with script.client.session("s", keep=keep):
        pass
    assert "DELETE" not in [sent.method for sent in script.requests]


def test_a_session_whose_answer_was_lost_is_found_again() -> None:
    script = Script(
        httpx.ReadError("reset"), refused(409, "conflict"), httpx.Response(200, json=SESSION), httpx.Response(204)
    )
    with script.client.session():
        pass
    assert script.body(0)["session_id"] == script.body(1)["session_id"]
    assert script.requests[-1].method == "DELETE"


def test_what_is_gone_already_is_removed() -> None:
    script = Script(httpx.Response(201, json=SESSION), httpx.ReadError("reset"), refused(404, "not_found"))
    script.client.session("s").end()


def test_paths_of_files_are_escaped() -> None:
    script = Script(httpx.Response(201, json=SESSION), httpx.Response(201, json={}), httpx.Response(200, content=b"x"))
    files = script.client.session("s").files
    files.write("a b/ü?.txt", "text")
    assert script.requests[1].url.raw_path == b"/sessions/s/files/a%20b/%C3%BC%3F.txt"
    assert files.read("a b/ü?.txt") == b"x"


@pytest.mark.parametrize("path", ["../../other", "..", ".", "a/../b", "/etc/passwd"])
def test_no_path_leads_out_of_the_files_of_a_session(path: str) -> None:
    script = Script(httpx.Response(201, json=SESSION), refused(400, "invalid_request"))
    with pytest.raises(InvalidRequest):
        script.client.session("s").files.remove(path)
    assert script.requests[1].url.raw_path.startswith(b"/sessions/s/files/")


def test_two_dots_are_a_name_as_any_other() -> None:
    script = Script(refused(404, "not_found"), refused(404, "not_found"))
    for name in ("..", "\udcff"):
        with pytest.raises(NotFound):
            script.client.get_run(name)
    assert [request.url.raw_path for request in script.requests] == [b"/runs/%2E%2E", b"/runs/%ED%B3%BF"]


# --- results


def test_a_result_shows_itself() -> None:
    url = "https://elsewhere/image/1_a.png"
    script = Script(
        ok(
            output="<b>\n",
            results=[{"text/plain": "df", "text/html": "<table>"}, {"image": "figure-1.png"}],
            images={"figure-1.png": url},
            files={"t.csv": "https://elsewhere/file/2_t.csv"},
        ),
        httpx.Response(200, content=b"png"),
    )
    result = script.client.run("1")
    shown = result._repr_mimebundle_()
    assert "&lt;b&gt;" in shown["text/html"]
    assert '<iframe sandbox srcdoc="&lt;table&gt;"' in shown["text/html"]
    assert "data:image/png;base64,cG5n" in shown["text/html"]
    assert shown["text/plain"].splitlines() == [
        "<b>",
        "df",
        f"[figure-1.png] {url}",
        "[t.csv] https://elsewhere/file/2_t.csv",
    ]
    assert script.requests[1].url == "http://gateway:1/image/1_a.png"
    assert result.text == "df"


def test_a_result_shows_itself_although_the_gateway_is_gone() -> None:
    script = Script(ok(images={"a.png": "https://host/image/1_a.png"}), *[DOWN] * 100)
    assert 'src="https://host/image/1_a.png"' in script.client.run("1")._repr_mimebundle_()["text/html"]


def test_the_client_imports_nothing_of_the_server() -> None:
    program = "import gateway.client, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    names = set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not names & {"sessions", "kernel_image", "tornado", "sqlalchemy", "docker", "msgspec", "structlog", "yaml"}
