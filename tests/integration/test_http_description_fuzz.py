"""Requests made from the description, and spoilt ones: whatever is sent, the answer is one that is described.

The same requests are made each time. Those whose schema they follow reach the handlers; the others are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from described import ALICE, CALLS, TOKENS, BriefService, Call, bearer, check, lay_out, resolved
from http_face import serving
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gateway.http.base.errors import INTERNAL_SENTENCE

EXAMPLES = 8
"""Requests for each method of each route that follow their schemas; a quarter as many are spoilt in each of `PARTS`."""
PARTS = ("path", "query", "header", "field", "body", "type", "escape", "several")

ODD_TEXTS = ["", " ", "..", "x" * 300, "%", "%00", "%ff", "%C3%A9", "a%2Fb", "-1", "1e999", "null", "[]", "🐍", "\x00"]
ODD_PARTS = [text for text in ODD_TEXTS if text != ".."]
"""Clients resolve the other."""

ODD_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ODD_TYPES = ["text/plain", "application/json; charset=latin-1", "multipart/form-data", "", "application/x-ndjson"]


@dataclass(frozen=True)
class Sent:
    """A request."""

    url: str
    params: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None


def valid(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - one for each kind of schema
    """Values of a schema of the document."""
    match resolved(schema):
        case {"const": value}:
            return st.just(value)
        case {"enum": options}:
            return st.sampled_from(options)
        case {"anyOf": options}:
            return st.one_of([valid({**option}) for option in options])
        case {"pattern": pattern}:
            return st.from_regex(pattern.removeprefix("^").removesuffix("$"), fullmatch=True)
        case {"format": "uuid"}:
            return st.uuids().map(str)
        case {"type": "object", "properties": properties, **rest}:
            needed = rest.get("required", ())
            fields = {name: valid(field) for name, field in properties.items()}
            return st.fixed_dictionaries({name: fields.pop(name) for name in needed}, optional=fields)
        case {"type": "object", **rest}:
            names = st.text(max_size=5) | st.sampled_from(["x", "y", "_z"])
            return st.dictionaries(names, valid(rest.get("additionalProperties", {})), max_size=3)
        case {"type": "array", **rest}:
            return st.lists(valid(rest.get("items", {})), max_size=3)
        case {"type": str() as kind, **rest}:
            return _plain(kind, rest)
        case _:
            return st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=3)


def _plain(kind: str, rest: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    least = rest.get("minimum", rest.get("exclusiveMinimum"))
    match kind:
        case "string":
            return st.text(min_size=rest.get("minLength", 0), max_size=min(rest.get("maxLength", 40), 40))
        case "integer":
            return st.integers(least, rest.get("maximum"))
        case "number":
            return st.floats(least, rest.get("maximum"), exclude_min="exclusiveMinimum" in rest, allow_nan=False)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    raise NotImplementedError(kind)


def values(parameter: Mapping[str, Any]) -> st.SearchStrategy[str]:
    """What a parameter may be, as text."""
    if "content" in parameter:
        return valid(parameter["content"]["application/json"]["schema"]).map(json.dumps)
    return valid(parameter["schema"]).map(lambda value: value if isinstance(value, str) else json.dumps(value))


@st.composite
def following(draw: st.DrawFn, call: Call) -> Sent:
    """A request that is as described; what its path names is there, or not."""
    parts, params, headers = {}, {}, {}
    for one in call.parameters:
        if one["in"] == "path":
            if draw(st.integers(0, 3)) == 0:
                parts[one["name"]] = draw(values(one).filter(lambda part: part.strip(".")))
        elif one["required"] or draw(st.booleans()):
            (params if one["in"] == "query" else headers)[one["name"]] = draw(values(one))
    headers = {name: value for name, value in headers.items() if _fits_a_header(value)}
    content_type, content = draw(bodies(call))
    return Sent(call.url(**parts), params, headers | draw(accepting(call)) | content_type, content)


def _fits_a_header(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()


def accepting(call: Call) -> st.SearchStrategy[dict[str, str]]:
    """One of the media types of the answer."""
    content = [name for response in call.said["responses"].values() for name in response.get("content", {})]
    return st.sampled_from([{}, *({"Accept": name} for name in content)])


@st.composite
def bodies(draw: st.DrawFn, call: Call) -> tuple[dict[str, str], bytes | None]:
    """A body that is as described, in one of its media types, with the header for it."""
    body = call.said.get("requestBody")
    if body is None or (not body["required"] and draw(st.booleans())):
        return {}, None
    media_type = draw(st.sampled_from(list(body["content"])))
    if media_type == "*/*":
        return {}, draw(st.binary(max_size=200))
    value = draw(valid(body["content"][media_type]["schema"]))
    if media_type == "application/json":
        return {"Content-Type": media_type}, json.dumps(value).encode()
    texts = {name: field if isinstance(field, str) else json.dumps(field) for name, field in value.items()}
    if media_type == "multipart/form-data":
        files = {name: (None, text) for name, text in texts.items()}
        form = httpx.Request("POST", "http://form", files=files)
        return {"Content-Type": form.headers["Content-Type"]}, form.read()
    return {"Content-Type": media_type}, urlencode(texts).encode()


@st.composite
def spoilt(draw: st.DrawFn, call: Call, part: str) -> Sent:
    """A request that is not as described, in one of its parts."""
    sent = draw(following(call))
    odd = st.sampled_from(ODD_TEXTS)
    params, headers, content = dict(sent.params), dict(sent.headers), sent.content
    known = [one["name"] for one in call.parameters if one["in"] == "query"]
    url = sent.url
    match part:
        case "path":
            url = call.url(
                **{one["name"]: draw(st.sampled_from(ODD_PARTS)) for one in call.parameters if one["in"] == "path"}
            )
        case "query":
            params[draw(st.sampled_from([*known, "coed", "token"]))] = draw(odd)
        case "header":
            names = [one["name"] for one in call.parameters if one["in"] == "header"]
            headers[draw(st.sampled_from(names))] = draw(st.sampled_from(["", "x" * 300, "a,b", '"', "-1", "\xe9"]))
        case "field":
            content = draw(spoilt_fields(content))
        case "body":
            content = draw(st.binary(max_size=50) | st.sampled_from([b"[]", b"null", b'{"a":', b"{" * 200, b"\xff"]))
        case "escape":
            url += draw(
                st.sampled_from(["?%ff", "?=", "?a;b", "?token=%ff", "?permissions=%ff", "?code=%00", "?" + "a&" * 200])
            )
            params = {}
        case "type":
            headers["Content-Type"] = draw(st.sampled_from(ODD_TYPES))
            content = content or b"{}"
        case _:
            content = json.dumps(draw(ODD_VALUES)).encode()
            params[draw(odd)] = draw(odd)
    return Sent(url, params, headers, content)


@st.composite
def spoilt_fields(draw: st.DrawFn, content: bytes | None) -> bytes:
    """An object with one field that is something else."""
    try:
        value = json.loads(content or b"{}")
    except ValueError:
        value = {}
    value = value if isinstance(value, dict) else {}
    value[draw(st.sampled_from([*value, "coed"]))] = draw(ODD_VALUES)
    return json.dumps(value).encode()


def drawn(strategy: st.SearchStrategy[Sent], count: int) -> list[Sent]:
    """So many requests, the same each time."""
    found: list[Sent] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(sent: Sent) -> None:
        found.append(sent)

    collect()
    return found


@pytest.mark.parametrize("call", CALLS, ids=str)
async def test_whatever_is_sent_is_answered_as_described(call: Call) -> None:
    requests = drawn(following(call), EXAMPLES)
    for part in PARTS:
        requests += drawn(spoilt(call, part), EXAMPLES // 4)
    async with serving(tokens=TOKENS, service=BriefService()) as face, httpx.AsyncClient(base_url=face.url) as client:
        for sent in requests:
            await lay_out(face.service)
            answer = await client.request(
                call.method,
                sent.url,
                params=sent.params or None,  # an empty one would remove the query of the URL
                headers=[(name, value.encode("latin-1")) for name, value in (sent.headers | bearer(ALICE)).items()],
                content=sent.content,
            )
            assert answer.status_code != 500 or INTERNAL_SENTENCE not in answer.text, sent
            try:
                check(call, answer)
            except Exception as error:
                error.add_note(f"{sent}")
                raise
