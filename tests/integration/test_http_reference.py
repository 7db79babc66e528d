"""`/openapi.json` and `/docs`: what is sent, to whom, and that the page needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import httpx
import pytest
from described import CALLS, TOKENS, described
from http_face import serving

from gateway.auth import StoredTokens
from gateway.http.reference.page import page
from gateway.http.reference.text import curl, type_of


class Outline(HTMLParser):
    """Elements by tag with their attributes, in order, and the elements that are open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


PAGE = page(described())
OUTLINE = Outline(PAGE)


@pytest.mark.parametrize(("path", "media_type"), [("/openapi.json", "application/json"), ("/docs", "text/html")])
async def test_the_description_is_there_for_everybody(path: str, media_type: str) -> None:
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        answer = await client.get(path)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == f"{media_type}; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-cache"
        etag = answer.headers["ETag"]
        again = await client.get(path, headers={"If-None-Match": f'"x", W/{etag}'})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
        head = await client.head(path)
        assert (head.status_code, head.content, head.headers["ETag"]) == (200, b"", etag)
        assert int(head.headers["Content-Length"]) == len(answer.content)
        foreign = await client.get(path, headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403


async def test_the_document_says_where_the_server_is_and_whether_it_wants_tokens() -> None:
    async with serving(public_url="https://box.example/cell/") as face, httpx.AsyncClient(base_url=face.url) as client:
        shown = (await client.get("/openapi.json")).json()
        assert shown["servers"] == [{"url": "https://box.example/cell"}]
        assert shown["paths"]["/runs"]["get"]["security"] == []
    async with serving(tokens=TOKENS) as face, httpx.AsyncClient(base_url=face.url) as client:
        shown = (await client.get("/openapi.json")).json()
        assert shown["servers"] == [{"url": "/"}]
        assert shown["paths"]["/runs"]["get"]["security"] == [{"bearer": []}]
        assert shown["paths"]["/api/me"]["get"]["security"] == [{"bearer": []}, {"query": []}]
        assert shown["paths"]["/healthz"]["get"]["security"] == []


async def test_the_first_token_that_is_made_is_told_of_from_then_on() -> None:
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        before = await client.get("/openapi.json")
        assert "-H 'Authorization: Bearer" not in (await client.get("/docs")).text
        face.context.set_stored_tokens(StoredTokens(ever=True))
        after = await client.get("/openapi.json", headers={"If-None-Match": before.headers["ETag"]})
        assert before.json()["paths"]["/runs"]["get"]["security"] == []
        assert after.json()["paths"]["/runs"]["get"]["security"] == [{"bearer": []}]
        assert "-H 'Authorization: Bearer" in (await client.get("/docs")).text


async def test_the_page_may_use_nothing_but_its_own_style() -> None:
    async with serving() as face, httpx.AsyncClient(base_url=face.url) as client:
        answer = await client.get("/docs")
    policy = answer.headers["Content-Security-Policy"]
    style = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert len(style) == 1
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    used = {tag for tag, _ in OUTLINE.elements}
    assert not used & {"script", "link", "img", "iframe", "form", "object", "svg"}
    assert not [attributes for _, attributes in OUTLINE.elements if "style" in attributes or "src" in attributes]
    assert not re.search(r"url\(|@import", style[0])


def test_the_page_is_well_formed_and_its_headings_are_in_order() -> None:
    assert OUTLINE.open == []
    levels = [int(tag[1]) for tag, _ in OUTLINE.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_link_of_the_page_leads_somewhere() -> None:
    ids = [attributes["id"] for _, attributes in OUTLINE.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] or "" for tag, attributes in OUTLINE.elements if tag == "a"]
    assert {link for link in links if not link.startswith("#")} == {"openapi.json"}
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert {call.said["operationId"] for call in CALLS if call.method != "HEAD"} <= set(ids)


def test_examples_are_calls_of_curl() -> None:
    shown = described()
    assert curl(shown, "/runs", "get") == (
        "curl -G http://127.0.0.1:8000/runs -H 'Authorization: Bearer <token>' --data-urlencode limit=10"
    )
    assert curl(shown, "/sessions/{id}", "delete") == (
        "curl -X DELETE http://127.0.0.1:8000/sessions/chat-42 -H 'Authorization: Bearer <token>'"
    )
    assert curl(shown, "/healthz", "get") == "curl http://127.0.0.1:8000/healthz"
    assert curl(shown, "/sessions/{id}", "patch").endswith(
        """-H 'Content-Type: application/json' -d '{"idle_timeout": 900}'"""
    )


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        ({"$ref": "#/components/schemas/Usage"}, '<a href="#type-Usage">Usage</a>'),
        ({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}, "string, at most 3 characters or null"),
        ({"type": "array", "items": {"type": "string"}}, "list of string"),
        (
            {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}},
            "object of integer, at least 1",
        ),
        ({"enum": ["a", "<b>"]}, "<code>&quot;a&quot;</code>, <code>&quot;&lt;b&gt;&quot;</code>"),
        ({}, "anything"),
    ],
)
def test_a_type_is_told_in_a_few_words(schema: dict[str, object], shown: str) -> None:
    assert type_of(schema) == shown
