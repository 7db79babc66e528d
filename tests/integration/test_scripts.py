"""What `make serve` does about a Docker engine that does not answer."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

PYTHON = """#!/usr/bin/env bash
case "$*" in
    *answers) exit "${ANSWERS:-1}" ;;
    *start) echo starting; exit "${START:-1}" ;;
    *) echo "${ENGINE:-auto}" ;;
esac
"""

Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Runs serve.sh where Python says what the test wants, and returns what was printed before the gateway started."""
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    programs = {"python": PYTHON, "cellblock": "#!/bin/sh\necho gateway\n"}
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, text in programs.items():
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(text)
        program.chmod(0o755)

    def run(**variables: str) -> str:
        command = ["bash", tmp_path / "scripts" / "serve.sh"]
        printed = subprocess.check_output(command, env={**os.environ, **variables}, text=True, timeout=30)
        assert printed.endswith("gateway\n")
        return printed.removesuffix("gateway\n")

    return run


def test_an_attempt_to_start_an_engine_that_failed_is_not_made_again_until_one_answers(serve: Serve) -> None:
    first = serve()
    assert "starting" in first
    assert "engine.name: process" in first
    second = serve()
    assert "starting" not in second
    assert "rm .venv/no-docker" in second
    assert serve(ANSWERS="0") == ""
    assert "starting" in serve()


def test_where_there_was_nothing_to_try_no_attempt_is_remembered(serve: Serve) -> None:
    assert "starting" in serve(START="3")
    assert "starting" in serve(START="0")
    assert "starting" in serve()


def test_the_process_engine_needs_no_attempt(serve: Serve) -> None:
    assert serve(ENGINE="process") == ""


def test_a_socket_that_may_not_be_opened_is_told_from_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("docker_engine", SCRIPTS / "docker_engine.py")
    assert spec is not None
    assert spec.loader is not None
    docker_engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docker_engine)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    assert docker_engine.start() == docker_engine.NONE_TO_BE_HAD
    assert "NO DOCKER ENGINE" in capsys.readouterr().err
    (tmp_path / "docker.sock").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may open anything
    assert docker_engine.start() == docker_engine.NONE_TO_BE_HAD
    assert "group docker" in capsys.readouterr().err
