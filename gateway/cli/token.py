"""`cellblock token`: tokens that are in the database, beside those of the configuration."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from gateway.auth import TENANT
from gateway.cli.connection import print_json
from gateway.cli.options import ConfigOption, JsonOption
from gateway.cli.tables import ago, as_json, show_json, show_table
from gateway.config import loader as configuration

if TYPE_CHECKING:
    from gateway.store.tokens import TokenStore

Value = TypeVar("Value")

token = typer.Typer(
    help="Make, list and revoke tokens. Gateways of the database know of it within seconds.", no_args_is_help=True
)


@token.command()
def create(
    *,
    tenant: Annotated[
        str, typer.Option(help="Whose it is: tokens of one tenant see the same runs and sessions.")
    ] = "default",
    name: Annotated[str, typer.Option(help="For your own eyes, in lists.")] = "",
    config: ConfigOption = None,
    wants_json: JsonOption = False,
) -> None:
    """Make a token and print it: it is shown once, and the database has its SHA-256 alone."""
    if TENANT.fullmatch(tenant) is None:
        raise typer.BadParameter("A tenant is 1 to 128 letters, digits, dots, underscores, colons and hyphens.")
    text, made = _with_tokens(config, lambda tokens: tokens.create(tenant, name))
    if wants_json:
        print_json({"token": text, **as_json(made)})
    else:
        sys.stdout.write(f"{text}\n")
        sys.stderr.write(f"This is shown once. `cellblock token revoke {made.id}` revokes it.\n")


@token.command("list")
def list_tokens(*, config: ConfigOption = None, wants_json: JsonOption = False) -> None:
    """List the tokens of the database, oldest first; those of the configuration are not among them."""
    found = _with_tokens(config, lambda tokens: tokens.list())
    if wants_json:
        show_json(found)
        return
    rows = ((made.id, made.tenant, made.name, ago(made.created_at), ago(made.revoked_at)) for made in found)
    show_table("tokens", ("ID", "TENANT", "NAME", "MADE", "REVOKED"), rows)


@token.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `list` shows it.")], *, config: ConfigOption = None
) -> None:
    """Have a token be refused from now on."""
    _with_tokens(config, lambda tokens: tokens.revoke(token_id))


def _with_tokens(config: Path | None, work: Callable[[TokenStore], Awaitable[Value]]) -> Value:
    from gateway import app as composition

    async def conversation() -> Value:
        async with composition.stored_tokens(configuration.load(config, os.environ), os.environ) as tokens:
            return await work(tokens)

    return asyncio.run(conversation())
