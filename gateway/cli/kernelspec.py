"""The command line's `cellblock kernelspec install | list | uninstall`. What a kernelspec is, is kernelspec.py's."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gateway.cli.options import ConfigOption
from gateway.config import loader as configuration
from sessions.errors import Misconfigured

kernelspec = typer.Typer(
    help="Make Cellblock's kernels known to the Jupyter tools of this machine.", no_args_is_help=True
)

UserOption = Annotated[bool, typer.Option("--user", help="In your own Jupyter directory, for all your environments.")]
SysPrefixOption = Annotated[
    bool, typer.Option("--sys-prefix", help="In the Python environment that Cellblock is in. This is the default.")
]
PrefixOption = Annotated[Path | None, typer.Option("--prefix", help="Below this directory.", file_okay=False)]


@kernelspec.command()
def install(
    *,
    language: Annotated[str, typer.Option(help="One of the `languages` of the configuration.")] = "python",
    name: Annotated[str, typer.Option(help="What tools call it; `cellblock-<language>` unless given.")] = "",
    display_name: Annotated[str, typer.Option(help="What people see.")] = "",
    user: UserOption = False,
    sys_prefix: SysPrefixOption = False,
    prefix: PrefixOption = None,
    config: ConfigOption = None,
) -> None:
    """Install a kernelspec. Its kernels run in containers, with the limits of the configuration.

    Where the configuration names the `process` engine, this makes the Python environment that they run in.
    """
    from gateway.local_jupyter import kernelspec as specs

    _check_place(user=user, sys_prefix=sys_prefix, prefix=prefix)
    if config is None and Path(configuration.DEFAULT_FILE).exists():
        config = Path(configuration.DEFAULT_FILE)
    configured = configuration.load(config, os.environ)
    if language not in configured.languages:
        known = ", ".join(sorted(configured.languages))
        raise Misconfigured(f"`languages` of the configuration has no {language}, but {known}.")
    content = specs.kernelspec_content(
        language, display_name or f"{language.capitalize()} (Cellblock)", config.absolute() if config else None
    )
    if configured.engine.name == "process" and configured.build.dependencies:
        from gateway import app as composition

        asyncio.run(composition.make_environment(configured.build, configured.data_dir(os.environ), Console()))
    where = specs.install(name or f"cellblock-{language}", content, user=user, prefix=str(prefix or sys.prefix))
    typer.echo(f"Installed {where}")


@kernelspec.command("list")
def list_() -> None:
    """List the kernelspecs of Cellblock's that Jupyter finds."""
    from gateway.local_jupyter import kernelspec as specs

    for spec in specs.installed():
        typer.echo("  ".join(filter(None, (spec.name, spec.language, str(spec.directory), spec.config_file))))


@kernelspec.command()
def uninstall(
    name: Annotated[str, typer.Argument(help="As `list` shows it.")],
    *,
    user: UserOption = False,
    sys_prefix: SysPrefixOption = False,
    prefix: PrefixOption = None,
) -> None:
    """Remove a kernelspec of Cellblock's: from the place that is named, else the first that Jupyter finds."""
    from gateway.local_jupyter import kernelspec as specs

    _check_place(user=user, sys_prefix=sys_prefix, prefix=prefix)
    named = user or sys_prefix or prefix is not None
    directory = specs.places(user=user, prefix=str(prefix or sys.prefix)) if named else None
    typer.echo(f"Removed {specs.uninstall(name, directory)}")


def _check_place(*, user: bool, sys_prefix: bool, prefix: Path | None) -> None:
    if user + sys_prefix + (prefix is not None) > 1:
        raise Misconfigured("--user, --sys-prefix and --prefix exclude one another: give one of them.")
