"""The examples of README and docs do what these say. What is not run says why: see doc_pages.

`127.0.0.1:8000` is the address of a gateway there. Pages that use pandas or matplotlib get one with containers, which
requires a token: `curl` sends it, and `$TOKEN` and the environment of the client have it.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from client_rig import ALICE, delete_all
from doc_bodies import compare, configure, converse, parse, send
from doc_console import commands_of, pattern, run_console, run_whole
from doc_pages import REPOSITORY, Block, MarkdownPage, example_pages
from doc_python import claims_of, holds, run_python
from jupyter_client_rig import FORGETFUL
from jupyter_kernel_client import JupyterKernelClient
from serve_rig import Gateway

NOT_RUN = ("not run:", "run by")
SHOWN = "127.0.0.1:8000"
OLDER_WAYS = pytest.mark.filterwarnings("ignore:Support for class-based:DeprecationWarning")
"""Of pydantic, which AutoGen keeps to."""
CURL = """#!/bin/sh
case "$*" in *Authorization*) ;; *) set -- -H "Authorization: Bearer $TOKEN" "$@" ;; esac
exec {curl} --silent --show-error "$@"
"""


def needs_containers(page: MarkdownPage) -> bool:
    texts = [block.text for block in page.blocks if block.mark not in NOT_RUN]
    return any(package in text for text in texts for package in ("pandas", "matplotlib"))


def parameters() -> Iterator[object]:
    for page in example_pages():
        if all(block.mark in NOT_RUN for block in page.blocks):
            continue
        marks = [pytest.mark.docker] if needs_containers(page) else []
        yield pytest.param(page, id=page.name, marks=[*marks, FORGETFUL, OLDER_WAYS])


class Reader:
    """Somebody who does what a page says, from its top to its end, in a directory of their own."""

    def __init__(self, gateway: Gateway, directory: Path, environment: Mapping[str, str]) -> None:
        self.gateway = gateway
        self.directory = directory
        self.environment = environment
        self.address = urlsplit(gateway.url).netloc
        self.headers = {"Authorization": f"Bearer {ALICE}"}
        self.variables = {"__name__": "__main__", "TOKEN": ALICE}

    def follow(self, block: Block) -> str:
        """What is wrong with a block, or nothing."""
        text = block.text.replace(SHOWN, self.address).replace("port=8000", f"port={self.address.rpartition(':')[2]}")
        if block.mark in NOT_RUN:
            return ""
        if block.mark == "file:":
            path = self.directory / block.argument
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return ""
        if block.mark:
            with httpx.Client(base_url=self.gateway.url, headers=self.headers, timeout=60) as http:
                return (send if block.mark == "body of" else compare)(block.argument, text, http)
        ways: dict[str, Callable[[], str]] = {
            "console": lambda: run_console(text, self.environment, self.directory),
            "json": lambda: parse(text),
            "python": lambda: run_python(block, text, self.variables),
            "sh": lambda: run_whole(text, self.environment, self.directory),
            "websocket": lambda: converse(text, self.gateway.url, self.headers),
            "yaml": lambda: configure(text, self.directory),
        }
        return ways[block.language]()

    def leave(self) -> None:
        """Drop what the examples have made, and what they forgot to close with it."""
        self.variables.clear()
        gc.collect()
        delete_all(self.gateway)


@pytest.fixture(autouse=True)
def hurried_kernel_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader looks only every ten seconds whether the connection was closed."""
    stop = JupyterKernelClient.stop

    def hurried(client: JupyterKernelClient, *arguments: Any, **options: Any) -> None:
        if client.has_kernel:
            client._manager.client.timeout = 0.1
        stop(client, *arguments, **options)

    monkeypatch.setattr(JupyterKernelClient, "stop", hurried)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of an example's programs: ours and `curl` are found, and nothing of this user's is."""
    programs = tmp_path / "bin"
    programs.mkdir()
    curl = programs / "curl"
    curl.write_text(CURL.format(curl=shutil.which("curl")))
    curl.chmod(0o755)
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    for name in [name for name in os.environ if name.startswith("CELLBLOCK_")]:
        monkeypatch.delenv(name)
    return {**os.environ, "PATH": path, "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY), "TOKEN": ALICE}


@pytest.mark.parametrize("page", list(parameters()))
def test_the_examples_of_a_page_hold(
    page: MarkdownPage,
    request: pytest.FixtureRequest,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway: Gateway = request.getfixturevalue("gateway" if needs_containers(page) else "plain_gateway")
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    ours = {"CELLBLOCK_URL": gateway.url, "CELLBLOCK_TOKEN": ALICE}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    reader = Reader(gateway, directory, {**environment, **ours})
    wrong = [f"{block}: {why}" for block in page.blocks if (why := reader.follow(block))]
    reader.leave()
    assert not wrong, "\n\n".join([*wrong, "Where an example cannot be run, say why: `<!-- not run: … -->` before it."])


def test_commands_go_on_over_lines() -> None:
    text = "$ a |\n  b \\\n  c\nshown\n$ c 'd\n$ e'\n$ cat <<'EOF' > f\n$ g\nEOF\nh\ni\n$ j # don't\n"
    assert [(command.text, command.expected) for command in commands_of(text)] == [
        ("a |\n  b \\\n  c", "shown\n"),
        ("c 'd\n$ e'", ""),
        ("cat <<'EOF' > f\n$ g\nEOF", "h\ni\n"),
        ("j # don't", ""),
    ]
    with pytest.raises(ValueError, match="no `\\$ ` before"):
        commands_of("shown\n")


@pytest.mark.parametrize(
    ("shown", "output"),
    [
        ('{"a":1,…}', '{"a":1,"b":[2]}'),
        ('{"id":"3ec4e160-aff0-4a08-8af8-da50ace9e93a"}', '{"id":"00000000-0000-0000-0000-000000000000"}'),
        ('"at":"2026-01-31T12:00:00.000000Z"', '"at":"2027-02-03T04:05:06.789012Z"'),
        ('"wall_ms":3.1,"memory_peak_bytes":5', '"wall_ms":12,"memory_peak_bytes":48234496'),
        ('{"a":1,\n "b":2}', '{"a":1,"b":2}'),
    ],
)
def test_output_is_compared_by_what_it_means(shown: str, output: str) -> None:
    assert pattern(shown).fullmatch(output)
    assert not pattern(shown).fullmatch(output + "!")


def test_a_command_that_fails_or_says_something_else_is_told(tmp_path: Path) -> None:
    environment = dict(os.environ)
    assert run_console("$ x=1\n$ echo $x\n1\n$ pwd > here\n", environment, tmp_path) == ""
    assert "status 3" in run_console("$ (echo gone; exit 3)\ngone\n", environment, tmp_path)
    assert "status 4" in run_console("$ exit 4\n$ echo\n", environment, tmp_path)
    assert run_whole("for n in 1 2\ndo\n    true\ndone\n", environment, tmp_path) == ""
    assert "status 5" in run_whole("(exit 5)", environment, tmp_path)
    assert "and not\n2" in run_console("$ echo 1\n2\n", environment, tmp_path)


def test_claims_of_python_are_compared() -> None:
    text = "a = 1\na + 1  # 2, or so\n'x'  # the letter\nprint(a)  # 1\nb = a  # 7\n"
    assert claims_of(text) == {2: "2, or so", 4: "1", 5: "7"}
    block = Block("page.md", 11, "python", text, "", "")
    assert run_python(block, text, {}) == "line 15 is 1, and not 7"
    assert 'page.md", line 11' in run_python(block, "1 / 0", {})
    assert holds("[1, …]", "[1, 2]")
