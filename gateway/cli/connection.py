"""Which gateway a command talks to, and what a failed conversation is to whoever called the command."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import typer

from gateway.addresses import DEFAULT_URL
from gateway.cli.terminal import plain

if TYPE_CHECKING:
    from gateway.client import AsyncClient

Value = TypeVar("Value")

_LOOK_S = 2.0
FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


class Address(NamedTuple):
    """A gateway, for what the client does not do: WebSockets. The token is empty where there is none."""

    url: str
    token: str


def refuse_options_before_a_command(context: typer.Context) -> None:
    """Raise BadParameter where `--url` and the like stand before a command of a group, which would not see them."""
    if context.invoked_subcommand is None:
        return
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"Options stand behind `{context.invoked_subcommand}`.")


@asynccontextmanager
async def connected(url: str | None, token: str | None) -> AsyncIterator[AsyncClient]:
    """A client of the gateway at this address, or of the one of this machine."""
    from gateway.client import AsyncClient

    try:
        client = AsyncClient(url, token)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    async with client:
        await _reach(client.url)
        yield client


@asynccontextmanager
async def connected_or_started(
    url: str | None, token: str | None, config: Path | None, *, starts: bool
) -> AsyncIterator[tuple[AsyncClient, bool]]:
    """A client of the gateway at this address, or of the one of this machine; or of one that ends with the block.

    Also whether it is such a one, whose images and files end with it. `starts` asks for one in any case.
    """
    if not starts and (url is not None or await _is_there(DEFAULT_URL)):
        async with connected(url, token) as client:
            yield client, False
        return
    from gateway.cli.one_off import one_off

    async with one_off(config) as started, connected(started, "") as client:
        yield client, True


async def _reach(url: str) -> None:
    """Raise ConnectionFailed at once where nothing answers: the client would be patient."""
    import httpx

    from gateway.client.calls import is_on_this_machine
    from gateway.client.errors import not_reached

    async with httpx.AsyncClient(timeout=_LOOK_S, trust_env=not is_on_this_machine(url)) as http:
        try:
            await http.get(f"{url}/healthz")
        except httpx.TransportError as error:
            raise not_reached(url, error) from error


async def _is_there(url: str) -> bool:
    """Whether a gateway of this machine answers there, and nobody else."""
    import httpx

    async with httpx.AsyncClient(timeout=_LOOK_S, trust_env=False) as http:
        try:
            return bool((await http.get(f"{url}/healthz")).json() == {"status": "ok"})
        except (httpx.HTTPError, ValueError):
            return False


def talk(conversation: Coroutine[Any, Any, Value]) -> Value:
    """Run it to its end. What fails is one sentence on standard error, and the exit status 1; Ctrl-C is 130."""
    from gateway.client import ClientError

    try:
        return asyncio.run(conversation)
    except ClientError as error:
        sys.stderr.write(f"cellblock: {plain(str(error))}\n")
        raise typer.Exit(FAILED) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(INTERRUPTED) from error


def print_json(value: Any) -> None:
    """One JSON text on standard output, in ASCII: what code prints may hold lone surrogates."""
    sys.stdout.write(json.dumps(value) + "\n")
