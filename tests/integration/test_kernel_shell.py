"""Shell commands in a kernel: `!`, `!!`, `%sx`, `%%bash`, `os.system`. They have pipes, no input, and interrupts."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from supervised import Supervised, supervised

from gateway.supervisors import SupervisorSwitchboard

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kernel() -> AsyncIterator[Supervised]:
    """One kernel for all the tests here; none may end it."""
    root = Path(tempfile.mkdtemp(prefix="cb-"))
    async with supervised(root, SupervisorSwitchboard(root / "s")) as supervisor:
        yield supervisor
        assert supervisor.deaths() == []
    shutil.rmtree(root)


OUTPUT = {
    "both streams": ("!echo out; echo err >&2", "out\n", "err\n"),
    "its exit code": ("!exit 3\nprint(_exit_code)", "3\n", ""),
    "a signal": ("!kill -9 $$\nprint(_exit_code)", "-9\n", ""),
    "variables": ("a = 'b c'\ndef f(x):\n    !echo {x} $x\nf(a)", "b c b c\n", ""),
    "no terminal": ("!test -t 0 || test -t 1 || test -t 2 || echo none", "none\n", ""),
    "no input": ("!read line; echo $?\n!cat", "1\n", ""),
    "its output": ("x = !echo a; echo b >&2; printf 'é'\nprint(x)", "['a', 'b', 'é']\n", ""),
    "its output, no input": ("x = !cat\nprint(x)", "[]\n", ""),
    "os.system": ("import os; print([os.system('exit 3'), os.system(b'kill -9 $$')])", "[768, 9]\n", ""),
    "between prints": ("print('a')\n!echo b\nprint('c', end=' ')\n!echo d", "a\nb\nc d\n", ""),
    "captured": (
        (
            "from IPython.utils.capture import capture_output\nwith capture_output() as c:\n    !echo a; echo b >&2\n"
            "print([c.stdout, c.stderr])"
        ),
        "['a\\n', 'b\\n']\n",
        "",
    ),
    "redirected": (
        (
            "import contextlib, io\n"
            "with contextlib.redirect_stdout(io.StringIO()) as text:\n    !printf 'é'; echo b >&2\n"
            "print([text.getvalue()])"
        ),
        "['é']\n",
        "b\n",
    ),
    "redirected, something in the background": (
        (
            "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as text:\n    !sleep 3 & echo a\n"
            "print([text.getvalue()])"
        ),
        "['a\\n']\n",
        "",
    ),
    "something in the background": ("!sleep 0.2 && true &\nprint('at once')", "at once\n", ""),
    "bash": ("%%bash\necho a; echo b >&2", "a\n", "b\n"),
}


@pytest.mark.parametrize("what", OUTPUT)
async def test_commands_have_pipes_and_no_input(kernel: Supervised, what: str) -> None:
    code, out, err = OUTPUT[what]
    run = await kernel.run(code)
    assert (run.text(), run.text("stderr"), run.reply()["status"]) == (out, err, "ok")


@pytest.mark.parametrize("code", ["!!echo bang", "%sx echo bang", "%system echo bang"])
async def test_what_a_command_writes_can_be_the_result(kernel: Supervised, code: str) -> None:
    assert (await kernel.run(code)).value() == "['bang']"


INTERRUPTED = {
    "a command": "!sleep 60",
    "a loop": "while True:\n    !sleep 0.05",
    "an output": "x = !sleep 60",
    "a loop of outputs": "while True:\n    x = !sleep 0.05",
    "os.system": "import os; os.system('sleep 60')",
    "a loop of os.system": "import os\nwhile True: os.system('sleep 0.05')",
    "one that ignores it": "!trap '' INT; sleep 60",
    "a child that ignores it": "!sh -c \"trap '' INT; sleep 60\"; echo",
    "captured": "from IPython.utils.capture import capture_output\nwith capture_output():\n    !sleep 60",
    "a loop of bash": "while True: get_ipython().run_cell_magic('bash', '', 'sleep 0.05')",
    "in code that awaits": "import asyncio; await asyncio.sleep(0)\n!sleep 60",
    "caught errors": "while True:\n    try:\n        !sleep 0.05\n    except Exception: pass",
}


@pytest.mark.parametrize("what", INTERRUPTED)
async def test_an_interrupt_ends_the_command_and_the_code(kernel: Supervised, what: str) -> None:
    msg_id = kernel.send(f"{INTERRUPTED[what]}\nprint('not reached')")
    await asyncio.sleep(0.7)
    kernel.interrupt(msg_id)
    began_s = time.monotonic()
    run = await kernel.end_of(msg_id)
    assert (run.end.msg_type, run.reply()["ename"]) == ("done", "KeyboardInterrupt")
    assert "not reached" not in run.text()
    assert time.monotonic() - began_s < 20
    assert (await kernel.run("!echo fine")).text() == "fine\n"


async def test_an_interrupted_script_ends_the_code(kernel: Supervised) -> None:
    msg_id = kernel.send("%%bash\nsleep 60")
    await asyncio.sleep(0.7)
    kernel.interrupt(msg_id)
    assert (await kernel.end_of(msg_id)).reply()["ename"] == "KeyboardInterrupt"
