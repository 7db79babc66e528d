"""What a request's metadata asks of supervisor and kernel: files to bring back, and an environment for one run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from supervised import Supervised, supervised

from gateway.supervisors import SupervisorSwitchboard

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "CB_TEST_SECRET"
SHOW = f"import os, subprocess\nprint(os.environ.get('{NAME}'), subprocess.getoutput('echo ${NAME}'))"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kernel() -> AsyncIterator[Supervised]:
    root = Path(tempfile.mkdtemp(prefix="cb-"))
    async with supervised(root, SupervisorSwitchboard(root / "s")) as supervisor:
        yield supervisor
    shutil.rmtree(root)


async def shown(kernel: Supervised) -> str:
    return (await kernel.run(SHOW)).text()


async def test_files_that_are_fetched_come_first_and_what_is_no_file_is_said(kernel: Supervised) -> None:
    await kernel.run("import os\nfor name in ('a', 'b'): open(name, 'w').write(name)\nos.symlink('a', 'link')")
    paths = ["b", "gone", "link", ".", "../b", "/etc/passwd", "d/e", "new", 7]
    run = await kernel.run("open('new', 'w').write('n')\nopen('0', 'w').write('')", cellblock={"fetch": paths})
    assert list(run.files().items()) == [("b", b"b"), ("new", b"n"), ("0", b"")]
    missing = [{"path": path, "bytes": 0, "why": "missing"} for path in ("gone", "link", "d/e")]
    assert run.end.content["skipped"] == missing


async def test_where_nothing_is_to_be_sent_what_is_missing_is_said(kernel: Supervised) -> None:
    run = await kernel.run("pass", cellblock={"fetch": ["nowhere"]})
    assert run.files() == {}
    assert [item["path"] for item in run.end.content["skipped"]] == ["nowhere"]


async def test_a_file_is_fetched_from_a_run_whose_kernel_dies(kernel: Supervised) -> None:
    await kernel.run("open('kept', 'w').write('k')")
    generation = len(kernel.states("idle"))
    run = await kernel.run("import os; os._exit(3)", cellblock={"fetch": ["kept", "none"]})
    assert (run.end.msg_type, run.files()) == ("died", {"kept": b"k"})
    assert [item["path"] for item in run.end.content["skipped"]] == ["none"]
    await kernel.ready(generation + 1)


ENDS = {
    "as usual": "pass",
    "with an error": "1 / 0",
    "with sys.exit": "import sys; sys.exit(3)",
    "in a syntax error": "1 +",
    "having changed it": f"os.environ['{NAME}'] = 'other'",
    "having removed it": f"del os.environ['{NAME}']",
    "having told the system alone": f"os.putenv('{NAME}', 'other')",
    "having another environment": "os.environ = dict(os.environ)",
}


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
async def test_an_environment_is_there_for_one_run_however_that_ends(kernel: Supervised, code: str) -> None:
    await kernel.run("import os; true_environ = os.environ")
    run = await kernel.run(SHOW + "\n" + code, cellblock={"env": {NAME: "s3cret"}})
    after = await shown(kernel)
    await kernel.run("os.environ = true_environ")
    assert run.text() == ("" if code == "1 +" else "s3cret s3cret\n")
    assert [after, await shown(kernel)] == ["None \n"] * 2


BREAK = """
import os
def broken(*_):
    raise RuntimeError("broken")
kept = os._Environ.__setitem__, os._Environ.__delitem__, os.putenv, os.unsetenv
os._Environ.__setitem__ = os._Environ.__delitem__ = os._Environ.pop = os.putenv = os.unsetenv = broken
"""
MEND = "os._Environ.__setitem__, os._Environ.__delitem__, os.putenv, os.unsetenv = kept; del os._Environ.pop"


async def test_code_that_breaks_the_environments_methods_breaks_no_session(kernel: Supervised) -> None:
    run = await kernel.run(f"{SHOW}\n{BREAK}", cellblock={"env": {NAME: "s3cret"}})
    assert run.text() == "s3cret s3cret\n"
    again = await kernel.run(SHOW, cellblock={"env": {NAME: "other"}})
    after = await shown(kernel)
    assert (await kernel.run(MEND)).reply()["status"] == "ok"
    assert (again.text(), after) == ("other other\n", "None \n")


async def test_an_environment_is_set_where_the_code_has_put_something_else_in_its_place(kernel: Supervised) -> None:
    await kernel.run("import os; true_environ = os.environ; os.environ = dict(os.environ)")
    show = SHOW
    run = await kernel.run(show, cellblock={"env": {NAME: "s3cret"}})
    after = await kernel.run(show)
    await kernel.run("os.environ = true_environ")
    assert (run.text(), after.text()) == ("s3cret s3cret\n", "None \n")


async def test_what_was_there_before_is_back_after_an_interrupt(kernel: Supervised) -> None:
    await kernel.run(f"import os; os.environ['{NAME}'] = 'before'")
    code = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
    msg_id = kernel.send(code, cellblock={"env": {NAME: "during"}})
    await kernel.printed("begun")
    kernel.interrupt(msg_id)
    assert (await kernel.end_of(msg_id)).reply()["ename"] == "KeyboardInterrupt"
    assert await shown(kernel) == "before before\n"
    await kernel.run(f"del os.environ['{NAME}']")


async def test_the_code_does_not_find_its_environment_in_the_request(kernel: Supervised) -> None:
    run = await kernel.run("print(get_ipython().kernel.get_parent('shell'))", cellblock={"env": {NAME: "s3cret"}})
    assert "s3cret" not in run.text()
