"""The description as a judge of answers, and a service that has what its examples name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from urllib.parse import quote

import httpx
from jsonschema import Draft202012Validator, FormatChecker
from memory_service import MemoryService

from gateway.auth import Token
from gateway.http.description.document import document
from gateway.http.description.parameters import FILE, IMAGE, KERNEL, NOTEBOOK, OTHER, RUN_ID, SESSION
from gateway.http.routes import ROUTES
from sessions.model import (
    Artifact,
    ArtifactId,
    ArtifactKind,
    ArtifactRef,
    JupyterSession,
    JupyterSessionId,
    RunRequest,
    SessionId,
    SessionRequest,
    TenantId,
)

ALICE, BOB = TenantId("alice"), TenantId("bob")
TOKENS = tuple(Token(sha256=hashlib.sha256(name.encode()).hexdigest(), tenant=name) for name in (ALICE, BOB))
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def bearer(tenant: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {tenant}"}


@cache
def described() -> dict[str, Any]:
    return document(ROUTES, version="1.2.3", server_url="", needs_token=True)


@dataclass(frozen=True)
class Call:
    """One method of one path."""

    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def said(self) -> Mapping[str, Any]:
        return described()["paths"][self.path][self.method.lower()]

    @property
    def is_socket(self) -> bool:
        return "101" in self.said["responses"]

    @property
    def parameters(self) -> list[Mapping[str, Any]]:
        return [resolved(parameter) for parameter in self.said["parameters"]]

    def url(self, **parts: str) -> str:
        """The path with the examples, or these parts of it."""
        given = {one["name"]: one["example"] for one in self.parameters if one["in"] == "path"} | parts
        return re.sub(r"\{(\w+)\}", lambda match: quote(given[match[1]]), self.path)

    @property
    def query(self) -> dict[str, str]:
        """The examples of the query."""
        found = {}
        for one in self.parameters:
            example = one.get("example", one.get("content", {}).get("application/json", {}).get("example"))
            if one["in"] == "query" and example is not None:
                found[one["name"]] = example if isinstance(example, str) else json.dumps(example)
        return found

    def bodies(self) -> Iterator[dict[str, Any]]:
        """The examples of the body, as arguments of httpx; one that has nothing where there are none."""
        examples = [
            (media_type, example["value"])
            for media_type, media in self.said.get("requestBody", {}).get("content", {}).items()
            for example in media.get("examples", {}).values()
        ]
        for media_type, value in examples:
            yield {"json": value} if media_type == "application/json" else {"content": value.encode()}
        if not examples:
            yield {}


CALLS = [Call(method.upper(), path) for path, methods in described()["paths"].items() for method in methods]


def resolved(value: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in value:
        found: Any = described()
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


def check(call: Call, answer: httpx.Response) -> None:
    """Status, headers and body are as described; an object has no field beyond those that are described."""
    responses = call.said["responses"]
    assert str(answer.status_code) in responses, (str(call), answer.status_code, answer.text[:300])
    response = resolved(responses[str(answer.status_code)])
    for name in ("X-Request-Id", *(["Retry-After"] if answer.status_code in (429, 503) else [])):
        assert name in answer.headers, (str(call), name)
    for name in response["headers"]:
        if answer.status_code != 101:
            assert name in answer.headers, (str(call), answer.status_code, name)
    content = response.get("content", {})
    if call.method == "HEAD" or not content:
        assert not answer.content or answer.status_code == 101
        return
    media_type = answer.headers["Content-Type"].partition(";")[0]
    assert media_type in content or "*/*" in content, (str(call), media_type)
    media = content.get(media_type, content.get("*/*"))
    if "x-item" in media:
        for value in streamed(media_type, answer.text):
            judge(media["x-item"]).validate(value)
    elif media_type.endswith("json"):
        judge(media["schema"]).validate(answer.json())


def streamed(media_type: str, text: str) -> list[Any]:
    if media_type == "application/x-ndjson":
        return [json.loads(line) for line in text.splitlines()]
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def judge(schema: Mapping[str, Any]) -> Draft202012Validator:
    """A validator of this schema of the document."""
    return Draft202012Validator(
        {**schema, "components": {"schemas": _closed_components()}}, format_checker=FormatChecker(["uuid"])
    )


@cache
def _closed_components() -> dict[str, Any]:
    return {
        name: {"additionalProperties": False, **schema} if "properties" in schema else schema
        for name, schema in described()["components"]["schemas"].items()
    }


async def lay_out(service: MemoryService) -> None:
    """Have what the examples name, all of it Alice's, and nothing else."""
    for held in (service.runs, service.sessions, service.artifacts, service.files.content):
        held.clear()
    service.add_run(RunRequest(tenant=ALICE, code="x", language="python", variables={}, timeout_s=1.0), RUN_ID).end()
    for session_id in (SESSION, KERNEL):
        await service.create_session(
            SessionRequest(
                tenant=ALICE,
                session_id=SessionId(session_id),
                language="python",
                variables={},
                idle_timeout_s=60.0,
                max_lifetime_s=600.0,
            )
        )
    view = service.sessions[ALICE, SessionId(SESSION)]
    notebook = JupyterSession(JupyterSessionId(NOTEBOOK), "a.ipynb", "a", "notebook")
    service.sessions[ALICE, SessionId(SESSION)] = replace(view, session=replace(view.session, jupyter=(notebook,)))
    service.files.content[FILE] = b"a,b\n"
    for identifier, name, kind in ((IMAGE, "figure-1.png", ArtifactKind.IMAGE), (OTHER, FILE, ArtifactKind.FILE)):
        ref = ArtifactRef(ArtifactId(identifier), kind, name, "text/csv", 4)
        service.artifacts[identifier] = Artifact(ref, b"a,b\n")


class BriefService(MemoryService):
    """Its runs have ended as soon as they have begun."""

    def add_run(self, request: RunRequest, run_id: str = "") -> Any:
        memory = super().add_run(request, run_id)
        if not run_id:
            memory.end()
        return memory
