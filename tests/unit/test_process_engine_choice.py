"""What the process engine does where the packages of `build.dependencies` cannot be installed."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console
from structlog.testing import capture_logs

from gateway import app
from sessions.errors import SetUpFailed
from sessions.settings import BuildSettings

DEFAULTS = BuildSettings()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> Path:
        raise SetUpFailed("pip: no network")

    monkeypatch.setattr(app, "ensure_environment", fail)
    monkeypatch.setattr(app, "is_installed", lambda name: name not in ("numpy", "lxml"))


async def test_without_the_default_packages_kernels_have_the_gateways_and_that_is_said(tmp_path: Path) -> None:
    printed = io.StringIO()
    with capture_logs() as logs:
        assert await app._process_environment(DEFAULTS, tmp_path, Console(file=printed, width=200)) is None
    assert [(line["event"], line["missing"]) for line in logs] == [("packages_not_installed", ["numpy", "lxml"])]
    assert f"{sys.executable} -m pip install numpy lxml" in printed.getvalue()


@pytest.mark.parametrize(
    "build",
    [replace(DEFAULTS, dependencies=("numpy",)), replace(DEFAULTS, constraints="mine.txt")],
    ids=["packages", "versions"],
)
async def test_what_the_operator_has_named_must_be_had(build: BuildSettings, tmp_path: Path) -> None:
    with pytest.raises(SetUpFailed, match="no network"):
        await app._process_environment(build, tmp_path, Console(file=io.StringIO()))
