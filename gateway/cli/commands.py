"""The command line: `cellblock serve | run | shell | sessions | runs | mcp`, and `build`, `token`, `doctor` and others.

It reads the configuration and hands over to `gateway.app`; what goes wrong comes out as one plain sentence.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace
from rich.console import Console

from gateway.cli.kernelspec import kernelspec
from gateway.cli.mcp import mcp
from gateway.cli.options import ConfigOption
from gateway.cli.run import run
from gateway.cli.runs import runs
from gateway.cli.sessions import sessions
from gateway.cli.shell.command import shell
from gateway.cli.token import token
from gateway.config import loader as configuration
from gateway.config.loader import Config
from gateway.console import show_built, show_findings
from gateway.doctor.findings import Level
from gateway.host.logs import configure_logs
from gateway.host.packages import own_version
from sessions.errors import CellblockError, Misconfigured

BAD_USAGE = 2
FAILED = 1

app = typer.Typer(
    name="cellblock",
    help="A self-hosted code interpreter: every run in a container of its own, at notebook speed, and never lost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.command()(run)
app.command()(shell)
app.add_typer(sessions, name="sessions")
app.add_typer(runs, name="runs")
app.add_typer(token, name="token")
app.add_typer(kernelspec, name="kernelspec")


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(f"cellblock {own_version()}")
        raise typer.Exit


@app.callback()
def cellblock(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options that come before the command."""
    del version


@app.command()
def serve(*, config: ConfigOption = None) -> None:
    """Start the gateway.

    Sets up what is missing (database, kernel image) and serves until SIGTERM or Ctrl-C, which lets running code end
    first; a second one hurries.
    """
    import uvloop

    from gateway import app as composition

    configure_logs()
    # A call takes some thirty turns of the event loop, and those of this one are much cheaper.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(composition.serve(_load(config), os.environ, Console()))


@app.command()
def build(
    *,
    config: ConfigOption = None,
    base: Annotated[
        str | None, typer.Option(help="The image to build on, or `debian` to make one from the Debian mirror.")
    ] = None,
    network: Annotated[str | None, typer.Option(help="The Docker network that the build may use.")] = None,
    proxy: Annotated[str | None, typer.Option(help="The HTTP proxy that the build uses.")] = None,
    ca_bundle: Annotated[
        Path | None,
        typer.Option("--ca-bundle", help="Certificates that the build trusts.", exists=True, dir_okay=False),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build anew, for newer packages.")] = False,
) -> None:
    """Build the kernel image that the configuration describes, unless it is there already."""
    configured = _load(config).build
    settings = replace(
        configured,
        base=base or configured.base,
        network=network or configured.network,
        proxy=proxy or configured.proxy,
        ca_bundle=str(ca_bundle or configured.ca_bundle),
    )
    from gateway import app as composition

    # The tag alone goes to standard output, so that scripts can take it from there.
    console = Console(stderr=True)
    built = asyncio.run(composition.build_image(settings, console, rebuild=rebuild))
    show_built(console, built.tag, is_new=built.is_new, took_s=built.took_s, size_bytes=built.size_bytes)
    typer.echo(built.tag)


@app.command()
def migrate(*, config: ConfigOption = None) -> None:
    """Bring the database to the shape that this version needs; `serve` does so by itself."""
    from gateway import app as composition

    changed = asyncio.run(composition.migrate_database(_load(config), os.environ))
    typer.echo("The database is up to date now." if changed else "The database was up to date already.")


@app.command()
def doctor(
    *,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, for programs.")] = False,
) -> None:
    """Look for what could keep code from running safely here, and say what to do about it.

    Changes nothing. The exit status is 1 when something fails.
    """
    from gateway import app as composition

    findings = asyncio.run(composition.examine(_load(config), os.environ))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        show_findings(Console(), findings)
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(FAILED)


app.command()(mcp)


def _load(path: Path | None) -> Config:
    return configuration.load(path, os.environ)


def main() -> None:
    """Run the command line; every error of ours is one sentence on standard error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called us
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - until we end
    try:
        app()
    except CellblockError as error:
        sys.stderr.write(f"cellblock: {error}\n")
        sys.exit(BAD_USAGE if isinstance(error, Misconfigured) else FAILED)
