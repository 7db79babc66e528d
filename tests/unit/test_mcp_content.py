"""What of the MCP server needs no gateway: how long text is cut, and who does without the SDK."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from gateway.client.results import run_result
from gateway.mcp.content import MOST_CHARACTERS, bounded, made_uri, output_uri, text_of


def said(**fields: Any) -> str:
    return text_of(run_result({"run_id": "r", "status": "ok", **fields}, lambda _: b""))


def test_all_that_a_run_says_is_in_the_text() -> None:
    results = [
        {"text/plain": "1"},
        {"image": "figure-1.png", "text/plain": "<Figure>"},
        {"text/html": "<b>"},
        {"a/b": 1},
    ]
    assert said(output="out\n", stderr="err\n", results=results) == "out\n[stderr]\nerr\n1\n<b>\n[a/b]"
    assert said(status="timeout", error="It took too long.") == "[timeout]\nIt took too long."
    assert "limits" in said(output="a", truncated=True)
    assert "lost" in said(output="a", session_lost=True)
    assert said() == "(no output)"


def test_long_text_keeps_both_ends() -> None:
    assert bounded("x" * MOST_CHARACTERS, "uri") == "x" * MOST_CHARACTERS
    cut = bounded("a" + "x" * MOST_CHARACTERS + "b", "uri")
    assert cut.startswith("axx")
    assert cut.endswith("xxb")
    assert "2 characters are left out; all 20002 are in uri" in cut


def test_names_in_uris_are_escaped() -> None:
    assert made_uri("r", "a b/ü#?.png") == "cellblock://runs/r/files/a%20b/%C3%BC%23%3F.png"
    assert output_uri("r") == "cellblock://runs/r/output"


def test_other_commands_do_without_the_sdk() -> None:
    program = "import gateway.cli.commands, gateway.app, sys; print({'httpx', 'mcp', 'starlette'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
