"""What a run whose kernel crashes has said and made, over a real supervisor without a container."""

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Supervised]:
    """One supervisor for all the tests here; each of them ends its kernel."""
    root = Path(tempfile.mkdtemp(prefix="cb-"))
    async with supervised(root, SupervisorSwitchboard(root / "s")) as kernel:
        yield kernel
    shutil.rmtree(root)


@pytest_asyncio.fixture(loop_scope="module")
async def kernel(shared: Supervised) -> Supervised:
    """Its next kernel."""
    await shared.ready(len(shared.deaths()) + 1)
    return shared


CRASHES = {
    "exit": ("import os; os._exit(4)", "exited", 4, None),
    "kill": ("import os; os.kill(os.getpid(), 9)", "signal", None, 9),
    "segfault": ("import os; os.kill(os.getpid(), 11)", "signal", None, 11),
    "null pointer": ("import ctypes; ctypes.string_at(0)", "signal", None, 11),
    "abort": ("import os; os.abort()", "signal", None, 6),
}


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("flush", [True, False])
async def test_output_written_before_a_crash_is_kept_exactly_once(
    kernel: Supervised, crash: str, *, flush: bool
) -> None:
    code, cause, exit_code, signal_number = CRASHES[crash]
    printing = f"import sys\nprint('héllo', flush={flush})\nprint('err', file=sys.stderr, flush={flush})\n"
    run = await kernel.run(printing + code)
    assert run.text("stdout") == "héllo\n"
    assert run.text("stderr").startswith("err\n")
    end = run.end.content
    assert (end["cause"], end["exit_code"], end["signal"]) == (cause, exit_code, signal_number)
    assert end["msg_id"] == run.msg_id
    await kernel.ready(len(kernel.deaths()) + 1)
    assert (await kernel.run("'x' in dir()")).value() == "False"


async def test_much_output_right_before_a_crash_is_whole_or_said_to_be_missing(kernel: Supervised) -> None:
    run = await kernel.run("import os\nfor i in range(100_000): print(i)\nos._exit(1)")
    gaps = [frame.content["dropped_bytes"] for frame in run.frames if frame.msg_type == "gap"]
    expected = "".join(f"{number}\n" for number in range(100_000))
    assert expected.endswith(run.text()[-1000:])
    assert len(run.text()) + sum(gaps) == len(expected)


INTERRUPTED_PRINTS = """
import signal
def interrupt(*_): raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
for n in range(300):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001 + n % 17 * 0.00003)
        while True: print("some line")
    except KeyboardInterrupt: pass
signal.setitimer(signal.ITIMER_REAL, 0)
"""


async def test_nothing_comes_twice_after_prints_that_were_interrupted(kernel: Supervised) -> None:
    assert (await kernel.run(INTERRUPTED_PRINTS)).reply()["status"] == "ok"
    run = await kernel.run("import os, sys\nprint('once', flush=True)\nprint('more')\nos._exit(1)")
    assert run.text() == "once\nmore\n"


async def test_what_was_never_text_is_not_counted_as_output(kernel: Supervised) -> None:
    code = "import sys, os\ntry: sys.stdout.write(12345)\nexcept TypeError: pass\nprint('x', flush=True)\nos._exit(1)"
    assert (await kernel.run(code)).text() == "x\n"


async def test_files_made_before_a_crash_are_kept(kernel: Supervised) -> None:
    run = await kernel.run("open('t.txt', 'w').write('made')\nimport os; os._exit(1)")
    assert run.files() == {"t.txt": b"made"}
