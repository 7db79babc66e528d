"""The table of routes: each route answers with its methods and no others, and `GET /` and docs/http.md tell of it."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from gateway.http.base.handler import BaseHandler
from gateway.http.base.route import Route
from gateway.http.routes import ROUTES, listed_routes

METHODS = BaseHandler.SUPPORTED_METHODS
LISTED = [route for route in ROUTES if route.is_listed]
DOCS = Path(__file__).parents[2] / "docs" / "http.md"


def url(route: Route) -> str:
    return re.sub(r"\{\w+\}", "x", route.path)


@pytest.mark.parametrize("route", LISTED, ids=lambda route: route.path)
async def test_a_route_answers_to_its_methods_and_says_405_to_others(client: httpx.AsyncClient, route: Route) -> None:
    for method in METHODS:
        if method == "OPTIONS":
            continue
        answer = await client.request(method, url(route))
        assert (answer.status_code == 405) == (method not in route.methods), method
        if method not in route.methods:
            assert answer.headers["Allow"] == ", ".join((*route.methods, "OPTIONS"))
        assert "nothing at this address" not in answer.text
    assert (await client.options(url(route))).headers["Allow"] == ", ".join((*route.methods, "OPTIONS"))


async def test_the_list_at_the_root_has_every_public_route(client: httpx.AsyncClient) -> None:
    shown = (await client.get("/")).json()["routes"]
    assert shown == listed_routes()
    assert len(set(shown)) == len(shown)
    expected = {(method, route.path) for route in LISTED for method in route.methods if method != "HEAD"}
    assert {tuple(line.split(" ", 1)) for line in shown} == expected
    assert {"GET /", "GET /runcode/ws", "GET /api/kernels/{id}/channels", "PUT /sessions/{id}/files/{path}"} <= set(
        shown
    )


@pytest.mark.parametrize("route", LISTED, ids=lambda route: route.path)
def test_every_public_route_is_in_the_documentation(route: Route) -> None:
    path = re.sub(r"\{artifact\}", "<uuid>_<name>", route.path)
    assert re.search(rf"`(?:[A-Z]+ )?{re.escape(path)}`", DOCS.read_text()), path
