"""What the clients ask the gateway, and when they ask again. Nothing is sent from here: see `Call`.

The blocking and the asynchronous client send what these functions yield, and send back what was answered.
"""

from __future__ import annotations

import base64
import json
import os
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypedDict, TypeVar, Unpack
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx

from gateway.addresses import DEFAULT_URL, TOKEN_VARIABLE, URL_VARIABLE
from gateway.client.errors import (
    ClientError,
    Conflict,
    ConnectionFailed,
    NotFound,
    ServerError,
    TooManyRequests,
    Unavailable,
    error_of,
    parsed,
)

PATIENCE_S = 60.0
READ_TIMEOUT_S = 60.0
"""Streams are silent for 15 s at most: a connection that is silent for longer than this is dead, or an answer slow."""

CONNECT_TIMEOUT_S = 10.0

REFUSED = 300
"""From here on no status is a success: the gateway redirects nothing that clients ask."""

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0
_PROXY_ERRORS = (502, 504)
EVENT_STREAM = "text/event-stream"

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `is_repeatable` says that to ask twice is as good as to ask once."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    content: bytes | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    is_repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whatever its status."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    def json(self) -> Any:
        """The body, as JSON. Raises ServerError where it is none."""
        return parsed(self.content)

    def error(self) -> ClientError:
        """The error that it is."""
        return error_of(self.status_code, self.content, self.headers.get("retry-after"))


Call = Generator[Ask | Pause, Reply | None, Value]
"""It yields a request and is sent the answer, or ConnectionFailed is thrown into it; or it yields a pause."""


class Driven(Generic[Value]):
    """A call under way. `step` is what it wants next; None once it has returned its `value`."""

    value: Value

    def __init__(self, call: Call[Value]) -> None:
        self._call = call
        self.step: Ask | Pause | None = None
        self.go_on()

    def go_on(self, reply: Reply | None = None) -> None:
        """The pause is over, or here is the reply. Raises what the call raises."""
        with self._ending():
            self.step = self._call.send(reply)

    def fail(self, error: ConnectionFailed) -> None:
        """There is no reply. Raises what the call raises."""
        with self._ending():
            self.step = self._call.throw(error)

    def close(self) -> None:
        """It is not brought to its end."""
        self._call.close()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except StopIteration as done:
            self.step, self.value = None, done.value


class Patience:
    """For how many seconds to go on trying.

    The mutable state is since when nothing has succeeded, and how long the next pause is.
    """

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience_s = patience_s
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Something has succeeded."""
        self._failing_since_s: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def pause(self, error: ClientError) -> Pause:
        """How long to wait before the next attempt. Raises the error where that would be too late."""
        now_s = self._clock()
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        pause_s = self._pause_s * random.uniform(0.5, 1.5)  # noqa: S311 - clients should not come all at once
        if error.retry_after_s is not None:
            pause_s = error.retry_after_s + random.uniform(0.0, 0.5)  # noqa: S311 - likewise
        if now_s + pause_s > self._failing_since_s + self._patience_s:
            raise error
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)
        return Pause(pause_s)


def answered(ask: Ask, patience: Patience) -> Call[Reply]:
    """Ask until there is an answer. Raises ClientError.

    After 429 and 503 nothing has been done. Whether anything has is unknown after a broken connection, and where a
    proxy answers: then only what is repeatable is asked again.
    """
    while True:
        try:
            reply = yield ask
        except ConnectionFailed as failure:
            if not ask.is_repeatable:
                raise
            yield patience.pause(failure)
            continue
        assert reply is not None  # noqa: S101 - only pauses have no answer
        if reply.status_code < REFUSED or _is_run(reply):
            return reply
        error = reply.error()
        if not is_momentary(error, is_repeatable=ask.is_repeatable):
            raise error
        yield patience.pause(error)


def is_momentary(error: ClientError, *, is_repeatable: bool = True) -> bool:
    """Whether the same request may well succeed a little later."""
    if isinstance(error, (TooManyRequests, Unavailable)):
        return True
    return is_repeatable and isinstance(error, ServerError) and not error.code and error.status_code in _PROXY_ERRORS


def _is_run(reply: Reply) -> bool:
    """Whether this is the answer of a run that passed its time limit, which is a 504 with all of a run's fields."""
    if reply.status_code != 504:  # noqa: PLR2004
        return False
    try:
        return "run_id" in reply.json()
    except (ServerError, TypeError):
        return False


class Origin:
    """The gateway's address, and what every request to it carries."""

    def __init__(self, url: str | None, token: str | None) -> None:
        """Without arguments, those of the environment. Raises ValueError for what is no URL, or no token."""
        self.url = (url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        try:
            scheme = httpx.URL(self.url).scheme
        except httpx.InvalidURL as error:
            raise ValueError(f"{self.url!r} is no address: {error}.") from error
        if scheme not in ("http", "https"):
            raise ValueError(f"A gateway's address begins with http:// or https://, as {DEFAULT_URL} does.")
        self.token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        if not (self.token.isascii() and self.token.isprintable()):
            raise ValueError("A token is printable ASCII; this one has other characters, such as a line end.")
        self._headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def arguments(self, ask: Ask) -> dict[str, Any]:
        """A request as httpx takes it. Raises ValueError for what JSON does not have, such as NaN."""
        headers, content = {**self._headers, **ask.headers}, ask.content
        if ask.body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(ask.body, allow_nan=False).encode()  # ASCII: Python's code may hold lone surrogates
        return {
            "method": ask.method,
            "url": self.url + ask.path,
            "params": ask.params or None,
            "headers": headers,
            "content": content,
            "timeout": httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        }


def is_on_this_machine(url: str) -> bool:
    """Whether a gateway's address is one of loopback, which no proxy of the environment's leads to."""
    return httpx.URL(url).host in ("localhost", "127.0.0.1", "::1")


# --- runs -------------------------------------------------------------------------------------------------------------


class RunArguments(TypedDict, total=False):
    """What may be said of a run beside its code; the gateway's docs/http.md has more on each.

    `timeout` is in seconds. `files` are written below the working directory first; `fetch` names files to bring back
    although the code did not change them; `env` has environment variables that the gateway's operator allows. With an
    `idempotency_key` of their own, several clients get the same run.
    """

    language: str | None
    variables: Mapping[str, Any] | None
    timeout: float | None
    files: Mapping[str, str | bytes] | None
    fetch: Iterable[str] | None
    env: Mapping[str, str] | None
    idempotency_key: str | None


class SessionArguments(TypedDict, total=False):
    """What may be said of a new session; both times are in seconds."""

    language: str | None
    variables: Mapping[str, Any] | None
    idle_timeout: float | None
    max_lifetime: float | None


def run_fields(code: str, session_id: str | None = None, /, **arguments: Unpack[RunArguments]) -> dict[str, Any]:
    """The fields of a run; what is None is left out. Raises TypeError for an argument that there is not."""
    if unknown := arguments.keys() - RunArguments.__annotations__.keys():
        raise TypeError(f"A run has no argument {min(unknown)!r}.")
    fields: dict[str, Any] = {"code": code, "session_id": session_id, **arguments}
    if (files := arguments.get("files")) is not None:
        fields["files"] = {path: _file(content) for path, content in files.items()}
    if (fetch := arguments.get("fetch")) is not None:
        fields["fetch"] = list(fetch)
    return {name: value for name, value in fields.items() if value is not None}


def batch_fields(code: str, session_id: str | None = None, **arguments: Unpack[RunArguments]) -> dict[str, Any]:
    """The fields of a batch's item, from the arguments of a run."""
    return run_fields(code, session_id, **arguments)


def _file(content: str | bytes) -> dict[str, str]:
    return {"text": content} if isinstance(content, str) else {"base64": base64.b64encode(content).decode()}


def run_ask(fields: Mapping[str, Any]) -> Ask:
    """The request for a run. Without a key it gets one of its own."""
    body = {name: value for name, value in fields.items() if name != "idempotency_key"}
    return Ask("POST", "/runcode", body, headers={"Idempotency-Key": fields.get("idempotency_key") or str(uuid4())})


def run(ask: Ask, patience: Patience) -> Call[Mapping[str, Any]]:
    """A run's answer, as JSON. However often the request is sent, the code runs once: it has a key.

    An answer that takes long is awaited over a stream, whose comments tell a slow run from a dead connection.
    """
    while True:
        try:
            reply = yield ask
        except ConnectionFailed as failure:
            yield patience.pause(failure)
            return (yield from _stream_to_end(streamed(ask), patience))
        assert reply is not None  # noqa: S101 - only pauses have no answer
        if reply.status_code < REFUSED or _is_run(reply):
            answer: Mapping[str, Any] = reply.json()
            return answer
        error = reply.error()
        if not is_momentary(error):
            raise error
        yield patience.pause(error)


def _stream_to_end(ask: Ask, patience: Patience) -> Call[Mapping[str, Any]]:
    while True:
        reply = yield from answered(ask, patience)
        *blocks, _ = reply.content.split(b"\n\n")
        for block in reversed(blocks):
            data = next((line[6:] for line in block.split(b"\n") if line.startswith(b"data: ")), b"")
            if not data:
                continue
            patience.reset()
            if (fields := parsed(data))["type"] == "end":
                return {name: value for name, value in fields.items() if name not in ("seq", "type")}
        yield patience.pause(ConnectionFailed("The gateway ended the stream before the run had ended."))


def streamed(ask: Ask) -> Ask:
    """The same request, to be answered with events."""
    return replace(ask, headers={**ask.headers, "Accept": EVENT_STREAM})


def events_ask(run_id: str, after: int) -> Ask:
    """The request for a run's events behind number `after`."""
    return Ask("GET", f"/runs/{segment(run_id)}/events", params={"after": str(after)}, headers={"Accept": EVENT_STREAM})


def artifact_ask(url: str) -> Ask:
    """The request for an image or file by its URL, which may begin with an address that only browsers reach."""
    return Ask("GET", "/" + "/".join(urlsplit(url).path.split("/")[-2:]))


# --- sessions ---------------------------------------------------------------------------------------------------------


def segment(text: str) -> str:
    """A name as one part of a path. `..` is a name like any other, which httpx would else take as a step up."""
    quoted = quote(text, safe="", errors="surrogatepass")
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


def file_path(session_id: str, path: str) -> str:
    """The path of a session's file. `./` before it is left out."""
    parts = path.removeprefix("./").split("/")
    return f"/sessions/{segment(session_id)}/files/{'/'.join(segment(part) for part in parts)}"


def open_session(
    session_id: str | None, fields: Mapping[str, Any], patience: Patience
) -> Call[tuple[bool, Mapping[str, Any]]]:
    """Make a session, or find the one that is there; returns whether it is new, and what it is.

    Without an id it gets one that nobody else has, so that a request whose answer was lost is known by it.
    """
    is_unnamed = session_id is None
    session_id = session_id or str(uuid4())
    body = {"session_id": session_id, **{name: value for name, value in fields.items() if value is not None}}
    ask = Ask("POST", "/sessions", body, is_repeatable=False)
    while True:
        try:
            reply = yield from answered(ask, patience)
        except ConnectionFailed as error:
            yield patience.pause(error)
        except Conflict:
            reply = yield from answered(Ask("GET", f"/sessions/{segment(session_id)}"), patience)
            return is_unnamed, reply.json()
        else:
            return True, reply.json()


def gone(ask: Ask, patience: Patience) -> Call[None]:
    """Have something removed. What is not there any more is removed."""
    is_sent = False
    while True:
        try:
            yield from answered(replace(ask, is_repeatable=False), patience)
        except ConnectionFailed as error:
            is_sent = True
            yield patience.pause(error)
        except NotFound:
            if not is_sent:
                raise
            return
        else:
            return
