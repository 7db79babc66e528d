"""`cellblock sessions`: the sessions of a gateway."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.connection import connected, print_json, refuse_options_before_a_command, talk
from gateway.cli.options import JsonOption, TokenOption, UrlOption
from gateway.cli.tables import ago, as_json, milliseconds, show_json, show_table

if TYPE_CHECKING:
    from gateway.client import SessionInfo

sessions = typer.Typer(help="List, show and end sessions: kernels that are kept from one run to the next.")

SessionArgument = Annotated[str, typer.Argument(metavar="SESSION", help="Its id.")]


@sessions.callback(invoke_without_command=True)
def default(
    context: typer.Context, *, url: UrlOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """List them, where nothing else is asked for."""
    refuse_options_before_a_command(context)
    if context.invoked_subcommand is None:
        list_sessions(url=url, token=token, as_json=as_json)


@sessions.command("list")
def list_sessions(*, url: UrlOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """List your sessions, oldest first."""

    async def conversation() -> list[SessionInfo]:
        async with connected(url, token) as client:
            return await client.sessions()

    found = talk(conversation())
    if as_json:
        show_json(found)
        return
    columns = ("SESSION", "STATE", "LANGUAGE", "RUNS", "LAST USED", "ENDS", "TIME USED")
    show_table(
        "sessions",
        columns,
        (
            (
                info.session_id,
                info.state,
                info.language,
                str(info.runs),
                ago(info.last_used_at),
                ago(info.expires_at),
                milliseconds(info.usage),
            )
            for info in found
        ),
    )


@sessions.command()
def show(session_id: SessionArgument, *, url: UrlOption = None, token: TokenOption = None) -> None:
    """Print a session, as JSON."""

    async def conversation() -> SessionInfo:
        async with connected(url, token) as client:
            return await client.get_session(session_id)

    print_json(as_json(talk(conversation())))


@sessions.command()
def end(session_id: SessionArgument, *, url: UrlOption = None, token: TokenOption = None) -> None:
    """End a session, with its variables and files."""

    async def conversation() -> None:
        async with connected(url, token) as client:
            await (await client.attach(session_id)).end()

    talk(conversation())


@sessions.command()
def interrupt(session_id: SessionArgument, *, url: UrlOption = None, token: TokenOption = None) -> None:
    """Interrupt what runs in a session, as Ctrl-C does."""

    async def conversation() -> None:
        async with connected(url, token) as client:
            await (await client.attach(session_id)).interrupt()

    talk(conversation())


@sessions.command()
def restart(session_id: SessionArgument, *, url: UrlOption = None, token: TokenOption = None) -> None:
    """Start a fresh kernel in a session: variables are gone, files stay."""

    async def conversation() -> None:
        async with connected(url, token) as client:
            await (await client.attach(session_id)).restart()

    talk(conversation())


@sessions.command()
def notebook(
    session_id: SessionArgument,
    file: Annotated[
        Path | None, typer.Argument(help="Where to write it; without it, standard output.", dir_okay=False)
    ] = None,
    *,
    url: UrlOption = None,
    token: TokenOption = None,
) -> None:
    """Write a session as a Jupyter notebook."""

    async def conversation() -> str:
        async with connected(url, token) as client:
            return json.dumps(await (await client.attach(session_id)).notebook(), indent=1) + "\n"

    text = talk(conversation())
    if file is None:
        sys.stdout.write(text)
    else:
        file.write_text(text)
