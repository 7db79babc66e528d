"""`cellblock run`: code from a file or standard input, on a gateway, or on one that lives as long as the command."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.connection import FAILED, connected_or_started, print_json, talk
from gateway.cli.options import JsonOption, OneOffConfigOption, OneOffOption, TokenOption, UrlOption
from gateway.cli.terminal import Screen
from gateway.cli.waiting import saying_why

if TYPE_CHECKING:
    from gateway.client import AsyncClient, Event, RunResult
    from gateway.client.calls import RunArguments

    Result = RunResult[Awaitable[bytes]]


_LANGUAGES = {".sh": "bash", ".bash": "bash", ".js": "javascript", ".mjs": "javascript", ".ts": "typescript", ".r": "r"}


def run(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="The code; `-` reads it from standard input.")],
    *,
    url: UrlOption = None,
    token: TokenOption = None,
    session: Annotated[str | None, typer.Option(help="The session to run in; it is made when there is none.")] = None,
    language: Annotated[
        str | None, typer.Option(help="One of the gateway's languages; without it, what the file's name says.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds.", min=0.001)] = None,
    variable: Annotated[
        list[str] | None, typer.Option("--var", metavar="NAME=JSON", help="A variable to set; text need not be quoted.")
    ] = None,
    upload: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="PATH[=NAME]", help="A file of yours that the code finds under its name."),
    ] = None,
    fetch: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A file to bring back although the code did not change it.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An environment variable.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Where to save images and files; without it, their addresses are shown.", file_okay=False
        ),
    ] = None,
    as_json: JsonOption = False,
    starts: OneOffOption = False,
    config: OneOffConfigOption = None,
) -> None:
    """Run code, and show what it prints as it comes.

    Where no gateway is named and none answers on this machine, one is started, and ends with the run; what the code
    makes is then saved in a new directory. The exit status is 1 when the code fails.
    """
    arguments: RunArguments = {
        "language": language or _LANGUAGES.get(Path(file).suffix.lower()),
        "timeout": timeout,
        "variables": dict(_variable(text) for text in variable or []) or None,
        "files": dict(_upload(text) for text in upload or []) or None,
        "fetch": fetch or None,
        "env": dict(_pair(text, "--env") for text in env or []) or None,
    }
    code = _code(file)

    async def conversation() -> bool:
        async with connected_or_started(url, token, config, starts=starts) as (client, is_one_off):
            events = client.stream(code, session_id=session, **arguments)
            result = await to_end(client, events, None if as_json else Screen())
            directory = out or (Path(f"cellblock-{result.run_id[:8]}") if is_one_off else None)
            places = {} if directory is None else await _save(result, directory)
            if as_json:
                print_json({**result.raw, **({"saved": places} if places else {})})
            else:
                await show_made(result, places)
            return result.ok

    if not talk(conversation()):
        raise typer.Exit(FAILED)


async def to_end(
    client: AsyncClient, events: AsyncGenerator[Event, None], screen: Screen | None, *, cancels: bool = True
) -> Result:
    """Show a run's events as they come; returns its result. Ctrl-C cancels the run where that is wanted."""
    from gateway.client import ClientError

    run_id = ""
    try:
        async with aclosing(events), AsyncExitStack() as waiting:
            await waiting.enter_async_context(saying_why(client.url))
            async for event in events:
                await waiting.aclose()
                run_id = event.run_id
                if screen is not None:
                    screen.show(event.type, event.fields)
                if event.type == "end":
                    if screen is not None and event.fields["status"] not in ("ok", "error"):
                        screen.show("stderr", {"text": f"{event.fields.get('error', event.fields['status'])}\n"})
                    return client.result_of(event)
    except asyncio.CancelledError:
        if run_id and cancels:
            with suppress(ClientError):
                await client.cancel(run_id)
        raise
    raise AssertionError("a run's events have an end")


async def show_made(result: Result, places: Mapping[str, str]) -> None:
    """The images and files of a run, in the terminal or by where they are."""
    screen = Screen()
    for name, artifact in {**result.images, **result.files}.items():
        if not (name in result.images and name.endswith(".png") and screen.show_picture(await artifact.read())):
            screen.show_made(name, places.get(name, artifact.url))


async def _save(result: Result, directory: Path) -> dict[str, str]:
    """Save images and files below a directory; returns where each is. The code has chosen the names."""
    places = {}
    for name, artifact in {**result.images, **result.files}.items():
        places[name] = _write(directory, name, await artifact.read())
    return places


def _write(directory: Path, name: str, content: bytes) -> str:
    from gateway.client import ClientError

    place = directory / name
    try:
        if not place.resolve().is_relative_to(directory.resolve()):
            raise ClientError(f"The run made a file that would be saved outside of {directory}: {name!r}.")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    except (OSError, ValueError) as error:
        raise ClientError(f"The run made {name!r}, which cannot be saved in {directory} ({error}).") from error
    return str(place)


def _code(file: str) -> str:
    try:
        if file == "-" and sys.stdin is None:
            raise typer.BadParameter("Standard input is closed.")
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{file} is no text in UTF-8.") from error


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{option} takes NAME=VALUE, not {text!r}.")
    return name, value


def _variable(text: str) -> tuple[str, Any]:
    """A name and a value: JSON where it is JSON, else the text itself."""
    name, value = _pair(text, "--var")
    with suppress(ValueError, RecursionError):
        return name, json.loads(value, parse_constant=_no_constant, parse_float=_finite)
    return name, value


def _no_constant(text: str) -> Any:
    raise ValueError(f"JSON has no {text}.")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is out of range.")
    return number


def _upload(text: str) -> tuple[str, bytes]:
    path, _, name = text.partition("=")
    try:
        return name or Path(path).name, Path(path).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read ({error.strerror}).") from error
