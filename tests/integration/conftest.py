"""What most tests of the HTTP face begin with: a server over a service in memory, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from http_face import Face, serving
from websockets.asyncio.client import ClientConnection, connect


@pytest_asyncio.fixture
async def face(request: pytest.FixtureRequest) -> AsyncIterator[Face]:
    """A server; a test gives it bounds with `@pytest.mark.parametrize("face", [HttpBounds(…)], indirect=True)`."""
    async with serving(bounds=getattr(request, "param", None)) as face:
        yield face


@pytest_asyncio.fixture
async def client(face: Face) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=face.url, timeout=20) as client:
        yield client


@pytest_asyncio.fixture
async def ws(face: Face) -> AsyncIterator[ClientConnection]:
    async with connect(face.ws_url) as ws:
        yield ws
