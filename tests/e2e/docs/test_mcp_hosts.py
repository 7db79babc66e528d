"""The configurations of MCP hosts in docs/how-to/mcp-hosts.md and docs/mcp.md, used as a host uses them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import httpx2
from client_rig import ALICE
from doc_pages import REPOSITORY, MarkdownPage
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent
from serve_rig import Gateway

from gateway.mcp import http

COMMAND = "/path/to/.venv/bin/cellblock"
HTTP_URL = "http://127.0.0.1:8001/mcp"
PAGES = ("docs/how-to/mcp-hosts.md", "docs/mcp.md")


def entries(kind: str) -> list[Any]:
    """What hosts read of our server, one for each block."""
    blocks = [block for page in PAGES for block in MarkdownPage(REPOSITORY / page).blocks if block.language == "json"]
    texts = [json.loads(block.text) for block in blocks]
    found = [(text.get("mcpServers") or text.get("servers") or {"cellblock": text})["cellblock"] for text in texts]
    return [entry for entry in found if kind in entry]


def filled(text: str, gateway_url: str) -> str:
    """With what a user, or the host, puts in."""
    text = re.sub(r"<token>|\$\{(env:CELLBLOCK_TOKEN|input:token)\}", ALICE, text)
    return re.sub(r"http://127\.0\.0\.1:8000|https://cells\.example\.org", gateway_url, text)


async def answer_of(client: Client) -> str:
    result = await client.call_tool("run_code", {"code": "print(6 * 7)"})
    content = result.content[0]
    assert isinstance(content, TextContent)
    return content.text


async def test_a_host_starts_the_command(plain_gateway: Gateway, tmp_path: Path) -> None:
    found = entries("command")
    assert {(entry["command"], entry.get("type", "stdio")) for entry in found} == {(COMMAND, "stdio")}
    different = {filled(json.dumps([entry["args"], entry["env"]]), plain_gateway.url) for entry in found}
    for args, env in map(json.loads, different):
        parameters = StdioServerParameters(
            command=str(Path(sys.executable).with_name("cellblock")),
            args=args,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), **env},
            cwd=tmp_path,
        )
        async with Client(parameters, mode="legacy") as client:
            assert await answer_of(client) == "42"


async def test_a_host_asks_the_server_over_http(plain_gateway: Gateway) -> None:
    announced: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def gateway_url() -> str:
        return plain_gateway.url

    serving = asyncio.ensure_future(http.serve("1", gateway_url, 0, [], announced.set_result))
    url = await announced
    try:
        for entry in entries("url"):
            assert (entry["type"], entry["url"]) == ("http", HTTP_URL)
            headers = {name: filled(value, plain_gateway.url) for name, value in entry["headers"].items()}
            async with (
                httpx2.AsyncClient(headers=headers, timeout=60) as connections,
                Client(streamable_http_client(url, http_client=connections), mode="auto") as client,
            ):
                assert await answer_of(client) == "42"
    finally:
        serving.cancel()
        await asyncio.wait([serving])
