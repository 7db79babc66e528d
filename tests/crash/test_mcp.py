"""The MCP server, through the SDK's own client, over both transports and in both eras of the protocol.

The gateway is a real one. Its tenants are apart, and it is killed while code runs.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import httpx2
import pytest
import pytest_asyncio
from crash_rig import CrashableGateway
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_rig import Host, command, http_server, images, in_a_task, links, over_http, over_stdio, texts, until
from store_fixtures import copy_template_data_dir

from gateway.client import AsyncClient
from gateway.client.calls import TOKEN_VARIABLE
from gateway.mcp.content import MOST_CHARACTERS
from gateway.mcp.conversation import Conversation
from gateway.mcp.server import make_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = [{"tenant": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("alice", "bob")]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/q842iQAAAABJRU5ErkJggg=="
SLOW = """
import time
open({ledger!r}, 'a').write('once\\n')
for line in range(40):
    print('line', line, flush=True)
    time.sleep(0.02)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway() -> AsyncIterator[CrashableGateway]:
    directory = Path(tempfile.mkdtemp(prefix="cb-"))
    settings = {"CELLBLOCK_AUTH_TOKENS": json.dumps(TOKENS), "CELLBLOCK_AUTH_REQUIRED": "false"}
    gateway = CrashableGateway(directory, "process", **settings)
    copy_template_data_dir(gateway.data_dir)
    await gateway.start()
    yield gateway
    gateway.stop()
    shutil.rmtree(directory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http_url(gateway: CrashableGateway) -> AsyncIterator[str]:
    async with in_a_task(http_server(gateway.url)) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(gateway: CrashableGateway, http_url: str) -> AsyncIterator[dict[str, Host]]:
    async with (
        in_a_task(over_stdio(command(gateway.url))) as stdio,
        in_a_task(over_http(http_url, "2025")) as http_2025,
        in_a_task(over_http(http_url)) as http,
    ):
        http.has_conversation = False
        yield {"stdio": stdio, "http-2025": http_2025, "http": http}


@pytest_asyncio.fixture(loop_scope="module", params=["stdio", "http-2025", "http"])
async def host(request: pytest.FixtureRequest, hosts: dict[str, Host]) -> Host:
    return hosts[request.param]


async def test_tools_say_what_they_take(host: Host) -> None:
    tools = {tool.name: tool for tool in (await host.client.list_tools()).tools}
    assert list(tools) == ["run_code", "list_files", "read_file", "write_file", "reset"]
    for tool in tools.values():
        properties = tool.input_schema["properties"]
        assert ("session_id" in properties) is not host.has_conversation
        assert all(shown["description"] and isinstance(shown["type"], str) for shown in properties.values())
        assert tool.annotations is not None
        assert tool.annotations.open_world_hint is False
    assert tools["run_code"].input_schema["required"] == ["code"]


async def test_variables_stay_and_errors_are_results(host: Host) -> None:
    assert await host.text("import sys\nx = 20\nprint('out')\nprint('err', file=sys.stderr)\nx + 1") == (
        "out\n[stderr]\nerr\n21"
    )
    failed = await host.run("1 / (x - 20)")
    assert failed.is_error
    assert "ZeroDivisionError" in texts(failed)[0]
    assert await host.text("x") == "20"
    assert await host.text("pass") == "(no output)"


async def test_images_are_seen_and_files_are_resources(host: Host) -> None:
    result = await host.run(
        f"import base64\nopen('dot.png', 'wb').write(base64.b64decode('{PNG}'))\n"
        "for n in range(6): open(f'more{n}.png', 'wb').write(open('dot.png', 'rb').read())\n"
        "open('t.csv', 'w').write('a,b'); open('raw.bin', 'wb').write(b'\\0\\xff')"
    )
    shown = images(result)
    assert [image.mime_type for image in shown] == ["image/png"] * 5
    assert base64.b64decode(shown[0].data).startswith(b"\x89PNG")
    linked = links(result)
    assert len(linked) == 4
    assert (linked["t.csv"].mime_type, linked["t.csv"].size) == ("text/csv", 3)
    assert await host.read(linked["t.csv"].uri) == b"a,b"
    assert await host.read(linked["raw.bin"].uri) == b"\0\xff"
    assert (await host.read(linked["more5.png"].uri)).startswith(b"\x89PNG")
    with pytest.raises(MCPError, match="no resource"):
        await host.read(linked["t.csv"].uri + "x")


async def test_a_long_output_is_cut_and_is_a_resource(host: Host) -> None:
    result = await host.run("print('head' + 'x' * 50_000 + 'tail')")
    text = texts(result)[0]
    assert len(text) < MOST_CHARACTERS + 200
    assert text.startswith("headxxx")
    assert text.endswith("xxxtail")
    uri = links(result)["output"].uri
    assert uri in text
    assert await host.read(uri) == b"head" + b"x" * 50_000 + b"tail"
    if host.has_conversation:
        assert uri in [resource.uri for resource in (await host.client.list_resources()).resources]


async def test_files_are_written_listed_and_read(host: Host) -> None:
    assert not (await host.call("write_file", path="in/a.txt", text="Grüße")).is_error
    assert not (await host.call("write_file", path="dot.png", base64=PNG)).is_error
    assert await host.text("open('in/a.txt').read()") == "'Grüße'"
    listed = await host.call("list_files")
    sizes = {file["path"]: file["bytes"] for file in listed.structured_content["files"]}
    assert (sizes["in/a.txt"], sizes["dot.png"]) == (7, 70)
    assert json.loads(texts(listed)[0]) == listed.structured_content
    assert texts(await host.call("read_file", path="in/a.txt")) == ["Grüße"]
    assert images(await host.call("read_file", path="dot.png"))[0].data == PNG
    await host.run("open('b.bin', 'wb').write(b'\\0\\1')")
    binary = await host.call("read_file", path="b.bin")
    assert await host.read(links(binary)["b.bin"].uri) == b"\0\1"
    missing = await host.call("read_file", path="none")
    assert missing.is_error
    assert "no file" in texts(missing)[0]


async def test_reset_forgets_variables_and_keeps_files(hosts: dict[str, Host]) -> None:
    host = hosts["http"]
    await host.run("y = 1; open('kept.txt', 'w').write('kept')")
    assert not (await host.call("reset")).is_error
    assert await host.text("'y' in globals(), open('kept.txt').read()") == "(False, 'kept')"


async def test_a_session_that_is_gone_is_made_anew_and_that_is_said(
    hosts: dict[str, Host], gateway: CrashableGateway
) -> None:
    host = hosts["stdio"]
    await host.run("x = 1; open('large.txt', 'wb').truncate(9 << 20)")
    large = await host.call("read_file", path="large.txt")
    assert links(large)["large.txt"].size == 9 << 20
    async with AsyncClient(gateway.url, "") as client:
        for info in await client.sessions():
            await (await client.session(info.session_id)).end()
    answer = texts(await host.run("'x' in globals()"))
    assert answer[0] == "False"
    assert "The session is new" in answer[1]


async def test_progress_is_the_last_line_and_cancelling_interrupts(host: Host, gateway: CrashableGateway) -> None:
    await host.run("z = 1")
    host.progress.clear()
    code = "print('one\\ntwo', flush=True)\nimport time\ntime.sleep(60)"
    running = asyncio.ensure_future(host.run(code))
    await until(lambda: host.progress == ["two"])
    running.cancel()
    await asyncio.wait([running])
    assert await host.text("z") == "1"
    async with AsyncClient(gateway.url, "") as client:
        assert [run.status for run in await client.runs(limit=2)] == ["ok", "cancelled"]


async def test_what_is_asked_wrongly_is_said(host: Host) -> None:
    with pytest.raises(MCPError, match="code"):
        await host.call("run_code", cod="1")
    with pytest.raises(MCPError, match="run_code"):
        await host.call("run")
    with pytest.raises(MCPError, match="`text` or as `base64`"):
        await host.call("write_file", path="a")
    result = await host.run("1", timeout=10_000)
    assert result.is_error
    assert "timeout" in texts(result)[0]


async def test_conversations_and_tenants_are_apart(
    hosts: dict[str, Host], gateway: CrashableGateway, http_url: str
) -> None:
    for name, host in hosts.items():
        await host.run(f"whose = {name!r}")
    for name, host in hosts.items():
        assert await host.text("whose") == repr(name)
    async with over_http(http_url, "2025", "alice") as alice, over_http(http_url, "2025", "bob") as bob:
        uri = links(await alice.run("print('x' * 30_000)"))["output"].uri
        assert len(await alice.read(uri)) == 30_000
        with pytest.raises(MCPError):
            await bob.read(uri)
    async with AsyncClient(gateway.url, "alice") as client:

        async def is_over() -> bool:
            return await client.sessions() == []

        await until(is_over)


async def test_the_servers_own_token_is_lent_to_nobody(
    hosts: dict[str, Host], gateway: CrashableGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "alice")
    assert await hosts["http"].text("'mine'") == "'mine'"
    async with AsyncClient(gateway.url) as client:
        assert hosts["http"].session_id not in [run.session_id for run in await client.runs()]


async def test_a_conversation_is_no_other_tenants(http_url: str) -> None:
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
    }
    headers = {"Accept": "application/json, text/event-stream"}
    async with httpx.AsyncClient(headers=headers) as client:
        begun = await client.post(http_url, json=hello, headers={"Authorization": "Bearer alice"})
        own = {"mcp-session-id": begun.headers["mcp-session-id"]}
        ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
        taken = await client.post(http_url, json=ping, headers={**own, "Authorization": "Bearer bob"})
        kept = await client.post(http_url, json=ping, headers={**own, "Authorization": "Bearer alice"})
        assert (taken.status_code, kept.status_code) == (404, 200)
        for token in (b"eve", "Äve".encode()):
            unknown = await client.post(http_url, json=hello, headers={b"Authorization": b"Bearer " + token})
            assert (unknown.status_code, unknown.headers["WWW-Authenticate"]) == (401, "Bearer")
        await client.delete(http_url, headers={**own, "Authorization": "Bearer alice"})


async def test_web_pages_and_other_hosts_are_refused(http_url: str) -> None:
    async with httpx.AsyncClient() as client:
        for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert (await client.post(http_url, json={}, headers=headers)).status_code == 403
        assert (await client.post(http_url, json={}, headers={"Host": "cells.example.org"})).status_code == 400
        assert (await client.get(http_url.replace("/mcp", "/"))).status_code == 404


async def test_a_wrong_token_is_said(gateway: CrashableGateway, http_url: str) -> None:
    async with AsyncClient(gateway.url, "eve") as client:

        async def connected() -> AsyncClient:
            return client

        conversation = Conversation(connected, is_lasting=True)
        async with Client(make_server("1", lambda _: conversation)) as mcp:
            result = await Host(mcp).run("1")
    assert result.is_error
    assert "token is not known" in texts(result)[0]
    with pytest.raises((MCPError, httpx2.HTTPStatusError, ExceptionGroup)):
        async with over_http(http_url, token="eve") as host:  # noqa: S106 - nobody's
            await host.run("1")


async def test_a_gateway_that_is_killed_is_waited_for(hosts: dict[str, Host], gateway: CrashableGateway) -> None:
    ledger = gateway.directory / "ledger"
    for host in hosts.values():
        await host.run("1")
        host.progress.clear()
    running = [asyncio.ensure_future(host.run(SLOW.format(ledger=str(ledger)))) for host in hosts.values()]
    await until(lambda: all(host.progress for host in hosts.values()))
    gateway.kill()
    await gateway.start()
    for result in await asyncio.gather(*running):
        assert texts(result)[0] == "\n".join(f"line {line}" for line in range(40))
    assert ledger.read_text() == "once\n" * 3
