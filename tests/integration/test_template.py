"""What kernels of the process engine take over from their template, and what they do not."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import shared_template
from supervised import supervised

from gateway.supervisors import SupervisorSwitchboard
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
            found = "import os; [os.readlink(f'/dev/fd/{fd}') for fd in range(1000) if os.path.exists(f'/dev/fd/{fd}')]"
            assert pipe not in (await kernel.run(found)).value()
    finally:
        os.close(reader)
        os.close(writer)
