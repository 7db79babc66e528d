"""What worker processes print belongs to the run, in its place and line by line, however they were started."""

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

LINES = 600
"""More than fits into the buffer of a child, which would send it in parts of 8 kB."""

WORK = f"""
import sys
def say(n):
    for i in range({LINES}):
        print('worker', n, 'says', i)
        print('error', n, 'says', i, file=sys.stderr)
    return n
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kernel() -> AsyncIterator[Supervised]:
    """One kernel for all the tests here, and a module for its workers."""
    root = Path(tempfile.mkdtemp(prefix="cb-"))
    async with supervised(root, SupervisorSwitchboard(root / "s")) as supervisor:
        (supervisor.work_dir / "work.py").write_text(WORK)
        yield supervisor
        assert supervisor.deaths() == []
    shutil.rmtree(root)


def pool(method: str) -> str:
    return (
        "import multiprocessing, work\n"
        f"with multiprocessing.get_context('{method}').Pool(4) as pool: pool.map(work.say, range(4), chunksize=1)\n"
    )


WAYS = {
    "fork": pool("fork"),
    "spawn": pool("spawn"),
    "forkserver": pool("forkserver"),
    "an executor": (
        "import concurrent.futures, multiprocessing, work\n"
        "with concurrent.futures.ProcessPoolExecutor(4, multiprocessing.get_context('spawn')) as pool:\n"
        "    list(pool.map(work.say, range(4)))\n"
    ),
    "an executor that stays": (
        "import concurrent.futures, multiprocessing, work\n"
        "kept = concurrent.futures.ProcessPoolExecutor(4, multiprocessing.get_context('spawn'))\n"
        "list(kept.map(work.say, range(4)))\n"
    ),
    "processes": (
        "import multiprocessing, work\nps = [multiprocessing.Process(target=work.say, args=(n,)) for n in range(4)]\n"
        "for p in ps: p.start()\nfor p in ps: p.join()\n"
    ),
    "forks": (
        "import os, work\nfor n in range(4):\n    if os.fork() == 0:\n        work.say(n); os._exit(0)\n"
        "for n in range(4): os.wait()\n"
    ),
    "scripts": (
        "import subprocess, sys\n"
        "ps = [subprocess.Popen([sys.executable, '-c', f'import work; work.say({n})']) for n in range(4)]\n"
        "for p in ps: p.wait()\n"
    ),
    "a command": '!for worker in 0 1 2 3; do python -c "import work; work.say($worker)" & done; wait\n',
}


@pytest.mark.parametrize("way", WAYS)
async def test_what_workers_print_is_the_runs_line_by_line(kernel: Supervised, way: str) -> None:
    run = await kernel.run(f"print('before')\n{WAYS[way]}print('after')")
    assert run.reply()["status"] == "ok", run.reply()
    lines = run.text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    for name, told in (("worker", lines[1:-1]), ("error", run.text("stderr").splitlines())):
        assert sorted(told) == sorted(f"{name} {n} says {i}" for n in range(4) for i in range(LINES))
    assert (await kernel.run("pass")).text() == ""


NO_SENDING_IN_BETWEEN = "import sys\nsys.stdout.flush_interval = 60"
"""A line of a child is held for as long as the code's own is unfinished, but no longer than until output is sent."""


async def test_a_line_of_a_child_goes_into_none_of_the_codes_own(kernel: Supervised) -> None:
    await kernel.run(NO_SENDING_IN_BETWEEN)
    code = "import os, time\nfor n in range(20): print('a', n, os.system('echo child') or 'b', end=' '); print('c')"
    lines = (await kernel.run(code)).text().splitlines()
    assert sorted(lines) == sorted(["child"] * 20 + [f"a {n} b c" for n in range(20)])


async def test_what_a_child_does_not_end_comes_before_what_follows(kernel: Supervised) -> None:
    code = (
        "import os, sys\nos.system('printf 1'); print('2')\n"
        "sys.stdout.write('3'); sys.stdout.flush(); os.system('echo 4')\n"
        "print('5')"
    )
    assert (await kernel.run(code)).text() == "12\n34\n5\n"


async def test_a_forked_child_does_not_repeat_what_its_parent_has_buffered(kernel: Supervised) -> None:
    code = (
        "import os\nprint('once')\nif os.fork() == 0:\n    print('child', end='', flush=True); os._exit(0)\nos.wait();"
    )
    assert (await kernel.run(code)).text() == "once\nchild"


async def test_a_child_that_a_library_has_forked_writes_behind_an_unfinished_line(kernel: Supervised) -> None:
    """Python knows nothing of such a fork."""
    await kernel.run(NO_SENDING_IN_BETWEEN)
    code = (
        "import ctypes, os\nprint('once', end='')\npid = ctypes.pythonapi.fork()\n"
        "if pid == 0:\n    print('child'); os._exit(0)\n"
        "os.waitpid(pid, 0); print()"
    )
    assert (await kernel.run(code)).text() == "once\nchild\n"


async def test_a_forked_child_writes_long_lines_and_more_than_the_pipe_holds(kernel: Supervised) -> None:
    code = "import os\nif os.fork() == 0:\n    print('é' * 300_000); print('x' * 10); os._exit(0)\nos.wait();"
    assert (await kernel.run(code)).text() == "é" * 300_000 + "\n" + "x" * 10 + "\n"


async def test_children_fork_while_other_threads_print(kernel: Supervised) -> None:
    code = (
        "import os, threading\nstop = threading.Event()\n"
        "def talk():\n    while not stop.wait(0.0001): print('thread\\n', end='')\n"
        "threads = [threading.Thread(target=talk) for _ in range(4)]\nfor t in threads: t.start()\n"
        "for n in range(50):\n    if (pid := os.fork()) == 0:\n        print('child', n); os._exit(0)\n"
        "    os.waitpid(pid, 0)\nstop.set()\nfor t in threads: t.join()"
    )
    run = await kernel.run(code)
    assert run.reply()["status"] == "ok"
    assert [line for line in run.text().splitlines() if line != "thread"] == [f"child {n}" for n in range(50)]


async def test_processes_of_the_code_are_not_isolated_and_find_no_trace(kernel: Supervised) -> None:
    code = (
        "import os, subprocess, sys\nos.environ['PYTHONPATH'] += ':/nowhere'\n"
        "subprocess.run([sys.executable, '-c', 'import sys; print([p for p in sys.path if \"child_python\" in p], '\n"
        "  '\"/nowhere\" in sys.path, sys.flags.isolated)']);"
    )
    assert (await kernel.run(code)).text() == "[] True 0\n"
