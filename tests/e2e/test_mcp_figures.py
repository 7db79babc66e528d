"""What the model sees of a figure that was drawn in a container. The rest is tests/crash/test_mcp.py's."""

from __future__ import annotations

import base64
import io

import imagesize
import pytest
from client_rig import ALICE
from mcp import Client
from mcp.types import ImageContent, TextContent
from serve_rig import Gateway

from gateway.client import AsyncClient
from gateway.mcp.conversation import Conversation
from gateway.mcp.server import make_server

pytestmark = pytest.mark.docker

CODE = """
import matplotlib.pyplot as plt
plt.plot([0, 1, 0.5, 0], [0, 0, 1, 0])
plt.show()
print("drawn")
"""


async def test_a_figure_is_an_image(gateway: Gateway) -> None:
    async with AsyncClient(gateway.url, ALICE) as client:

        async def connected() -> AsyncClient:
            return client

        conversation = Conversation(connected, is_lasting=True)
        async with Client(make_server("1", lambda _: conversation)) as mcp:
            text, image = (await mcp.call_tool("run_code", {"code": CODE})).content
        await conversation.end()
        assert await client.sessions() == []
    assert isinstance(text, TextContent)
    assert text.text == "drawn"
    assert isinstance(image, ImageContent)
    assert image.mime_type == "image/png"
    assert min(imagesize.get(io.BytesIO(base64.b64decode(image.data)))) > 100
