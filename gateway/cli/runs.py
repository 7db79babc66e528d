"""`cellblock runs`: the runs of a gateway, past and present."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.connection import FAILED, connected, print_json, refuse_options_before_a_command, talk
from gateway.cli.options import JsonOption, TokenOption, UrlOption
from gateway.cli.run import show_made, to_end
from gateway.cli.tables import ago, milliseconds, show_json, show_table
from gateway.cli.terminal import Screen

if TYPE_CHECKING:
    from gateway.client import RunResult, RunSummary

runs = typer.Typer(help="List, show and follow runs: past ones, and those at work.")

_LISTED = 20

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Its id.")]


@runs.callback(invoke_without_command=True)
def default(
    context: typer.Context, *, url: UrlOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """List them, where nothing else is asked for."""
    refuse_options_before_a_command(context)
    if context.invoked_subcommand is None:
        list_runs(session=None, status=None, limit=_LISTED, before=None, url=url, token=token, as_json=as_json)


@runs.command("list")
def list_runs(
    *,
    session: Annotated[str | None, typer.Option(help="Only those of this session.")] = None,
    status: Annotated[str | None, typer.Option(help="Only those of this status, such as `running`.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = _LISTED,
    before: Annotated[str | None, typer.Option(metavar="RUN", help="Only those that are older than this one.")] = None,
    url: UrlOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """List your runs, newest first."""

    async def conversation() -> list[RunSummary]:
        async with connected(url, token) as client:
            return await client.runs(session_id=session, status=status, limit=limit, before=before)

    found = talk(conversation())
    if as_json:
        show_json(found)
        return
    show_table(
        "runs",
        ("RUN", "STATUS", "LANGUAGE", "SESSION", "BEGUN", "TIME"),
        (
            (run.run_id, run.status, run.language, run.session_id or "", ago(run.created_at), milliseconds(run.usage))
            for run in found
        ),
    )


@runs.command()
def show(run_id: RunArgument, *, url: UrlOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """Show a run's output again, as far as there is any, with its code before it."""

    async def conversation() -> RunResult[Awaitable[bytes]]:
        async with connected(url, token) as client:
            result = await client.get_run(run_id)
            if not as_json:
                await _show(result)
            return result

    result = talk(conversation())
    if as_json:
        print_json(result.raw)


@runs.command()
def follow(run_id: RunArgument, *, url: UrlOption = None, token: TokenOption = None) -> None:
    """Show a run's output from its beginning to its end, as it comes. The exit status is 1 when the code fails."""

    async def conversation() -> bool:
        async with connected(url, token) as client:
            result = await to_end(client, client.events(run_id), Screen(), cancels=False)
            await show_made(result, {})
            return result.ok

    if not talk(conversation()):
        raise typer.Exit(FAILED)


@runs.command()
def cancel(run_id: RunArgument, *, url: UrlOption = None, token: TokenOption = None) -> None:
    """Have a run end."""

    async def conversation() -> None:
        async with connected(url, token) as client:
            await client.cancel(run_id)

    talk(conversation())


async def _show(result: RunResult[Awaitable[bytes]]) -> None:
    screen = Screen()
    code = str(result.raw.get("code", "")).rstrip("\n")
    screen.show(
        "stderr", {"text": f"{result.run_id} {result.status}\n" + "".join(f"  {line}\n" for line in code.split("\n"))}
    )
    screen.show("stdout", {"text": result.output})
    screen.show("stderr", {"text": result.stderr})
    for bundle in result.results:
        screen.show_bundle(bundle)
    if result.error:
        screen.show("stderr", {"text": f"{result.error}\n"})
    await show_made(result, {})
