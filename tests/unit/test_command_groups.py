"""Groups of commands that do something without one, too."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from gateway.cli.commands import app


@pytest.mark.parametrize("command", [["runs", "--url", "http://127.0.0.1:1", "list"], ["sessions", "--json", "list"]])
def test_an_option_before_the_command_is_refused_and_not_ignored(command: list[str]) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "behind `list`" in done.stderr
