"""Options that several commands have, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.addresses import DEFAULT_URL, TOKEN_VARIABLE, URL_VARIABLE
from gateway.config import loader as configuration


def _config(meaning: str) -> Any:
    return typer.Option("--config", envvar=configuration.FILE_VARIABLE, help=meaning, dir_okay=False)


ConfigOption = Annotated[
    Path | None,
    _config(
        "The configuration file; without it ./config.yaml, if there is one. Every key can also be set as "
        "CELLBLOCK_<SECTION>_<KEY>."
    ),
]
OneOffConfigOption = Annotated[
    Path | None, _config("The configuration of a gateway that is started for this command alone.")
]
UrlOption = Annotated[
    str | None, typer.Option("--url", envvar=URL_VARIABLE, help=f"The gateway's address; without it {DEFAULT_URL}.")
]
TokenOption = Annotated[str | None, typer.Option("--token", envvar=TOKEN_VARIABLE, help="The gateway's token.")]
OneOffOption = Annotated[
    bool, typer.Option("--one-off", help="Start a gateway for this alone, although there may be another.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
