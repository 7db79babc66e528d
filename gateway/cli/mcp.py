"""The command line's `cellblock mcp`: which gateway the MCP server works with, and over which transport."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from gateway.addresses import DEFAULT_URL, URL_VARIABLE
from gateway.cli.options import OneOffConfigOption
from gateway.host.packages import own_version
from gateway.host.stop_signals import ending_on_sigterm
from sessions.errors import CellblockError, Misconfigured, SetUpFailed

Address = Callable[[], Awaitable[str]]


def mcp(
    *,
    url: Annotated[str, typer.Option(help="The gateway; CELLBLOCK_URL unless given.")] = "",
    token: Annotated[str, typer.Option(help="Its token; CELLBLOCK_TOKEN unless given.")] = "",
    http: Annotated[
        int | None,
        typer.Option(
            "--http",
            min=0,
            max=65_535,
            metavar="PORT",
            help="Serve Streamable HTTP at /mcp on this port of 127.0.0.1, instead of standard input and output. "
            "Clients bring their own tokens.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(help="With --http: a further host name of ours, behind a proxy.")
    ] = None,
    config: OneOffConfigOption = None,
) -> None:
    """Serve MCP: let a model run code, through a running gateway, or one that this command starts and ends.

    Standard input and output carry the protocol; the log goes to standard error.
    """
    from gateway.client.calls import Origin

    if http is not None and token:
        raise Misconfigured("With --http each client brings its own token: leave --token out.")
    named = url or os.environ.get(URL_VARIABLE, "")
    try:
        Origin(named or None, token)
    except ValueError as error:
        raise Misconfigured(str(error)) from error
    try:
        import mcp as sdk
    except ImportError as error:
        raise Misconfigured('The MCP server needs the package `mcp`: pip install "cellblock[mcp]".') from error
    del sdk
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_serve(named, token or None, http, allowed_host or [], config))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _serve(named: str, token: str | None, port: int | None, hosts: list[str], config: Path | None) -> None:
    """Answer at once, and find or start the gateway meanwhile: hosts do not wait long for the first answer."""
    with ending_on_sigterm():
        done = asyncio.Event()
        finding: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        keeping = asyncio.create_task(_keep_gateway(named, token, config, finding, done))
        try:
            await _serve_clients(finding, token, port, hosts)
        finally:
            done.set()
            if not finding.done():
                keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


async def _serve_clients(finding: asyncio.Future[str], token: str | None, port: int | None, hosts: list[str]) -> None:
    from gateway.client import AsyncClient

    async def address() -> str:
        return await asyncio.shield(finding)

    if port is not None:
        from gateway.mcp import http

        await http.serve(own_version(), address, port, hosts, lambda url: typer.echo(f"MCP is at {url}", err=True))
        return
    from gateway.mcp import stdio

    client: AsyncClient | None = None

    async def connected() -> AsyncClient:
        nonlocal client
        base_url = await address()
        client = client or AsyncClient(base_url, token)
        return client

    try:
        await stdio.serve(own_version(), connected)
    finally:
        if client is not None:
            await client.close()


async def _keep_gateway(
    named: str, token: str | None, config: Path | None, finding: asyncio.Future[str], done: asyncio.Event
) -> None:
    """Say where the gateway is, or why there is none; one of our own is kept until all is done."""
    from gateway.cli.one_off import one_off

    try:
        if named or await _answers(token):
            finding.set_result(named or DEFAULT_URL)
            return
        async with one_off(config) as url:
            finding.set_result(url)
            await done.wait()
    except (CellblockError, OSError) as error:
        if finding.done():
            raise
        finding.set_exception(error if isinstance(error, CellblockError) else SetUpFailed(str(error)))
        finding.exception()  # it is said to whoever asks
        sys.stderr.write(f"cellblock: {error}\n")


async def _answers(token: str | None) -> bool:
    """Whether a gateway is where they are by default, rather than something else; it may want another token."""
    from gateway.client import AsyncClient, ClientError, TooManyRequests, Unauthorized, Unavailable

    async with AsyncClient(DEFAULT_URL, token, patience_s=0.0) as client:
        try:
            await client.sessions()
        except (Unauthorized, TooManyRequests, Unavailable):
            return True
        except (ClientError, LookupError, TypeError, ValueError):
            return False
    return True
