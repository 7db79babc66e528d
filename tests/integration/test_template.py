"""What kernels of the process engine take over from their template, and what they do not."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shared_template
from supervised import supervised

from gateway.supervisors import SupervisorSwitchboard
from sessions.provisioners.process.process_tree import process_identity
from sessions.provisioners.process.template import Template


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Iterator[Template]:
    """One that this test starts, of which the test's supervisors are forked."""
    for name in ("LANG", "LC_ALL", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    template = Template(Path(sys.executable), {"PATH": os.environ["PATH"]}, home_bytes=100)
    monkeypatch.setattr(shared_template, "own_template", lambda: template)
    yield template
    template.close()


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("template", "loose_umask")
async def test_the_files_of_kernels_are_for_their_owner_alone(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard) as kernel:
        await kernel.run("open('file', 'w').close()")
        assert (kernel.work_dir / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("template")
async def test_kernels_have_a_locale_where_the_environment_names_none(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    locales = []
    for is_forked in (False, True):
        root = short_dir / str(is_forked)
        root.mkdir()
        async with supervised(root, switchboard, is_forked=is_forked) as kernel:
            locales.append((await kernel.run("import os; os.environ.get('LC_CTYPE', '')")).value())
    assert locales[1] == locales[0]


@pytest.mark.usefixtures("template")
async def test_descriptors_that_the_gateway_has_inherited_do_not_reach_kernels(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETFD, 0)
        async with supervised(short_dir, switchboard) as kernel:
            pipe = f"pipe:[{os.fstat(writer).st_ino}]"
            found = await kernel.run("import os; print(*(os.path.realpath(f'/dev/fd/{fd}') for fd in range(1000)))")
            assert "pipe:[" in found.text()
            assert pipe not in found.text()
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_start_whose_answer_is_lost_is_made_again_and_leaves_one_supervisor(
    template: Template, short_dir: Path, switchboard: SupervisorSwitchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1", "2"):
        (short_dir / name).mkdir()
    async with supervised(short_dir / "1", switchboard):
        pass
    answer, lost = template._answer, []

    def lose_one(timeout_s: float) -> dict[str, Any]:
        answered = answer(timeout_s)
        if not lost:
            lost.append(answered["pid"])
            raise TimeoutError
        return answered

    monkeypatch.setattr(template, "_answer", lose_one)
    async with supervised(short_dir / "2", switchboard) as kernel:
        assert (await kernel.run("import os; os.getppid()")).value() == str(kernel.process.pid)
        async with asyncio.timeout(30):
            while process_identity(lost[0]) is not None:
                await asyncio.sleep(0.01)
