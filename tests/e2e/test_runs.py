"""What a run answers, in a real container and out of a real PostgreSQL: one case after another, end to end."""

from __future__ import annotations

import pytest
from e2e_rig import LIMITS, Rig

from sessions.errors import UnsupportedLanguage
from sessions.model import ANONYMOUS, RunRequest, RunStatus

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


async def test_hello_world(rig: Rig) -> None:
    result = await rig.run("print('Hello, World!')")
    assert (result.status, result.output, result.stderr, result.error) == (RunStatus.OK, "Hello, World!\n", "", None)
    assert result.execution_count == 1
    assert result.usage is not None
    assert 0 < result.usage.cpu_ms < 5000
    assert 0 < result.usage.memory_peak_bytes < LIMITS.memory_bytes


async def test_variables_are_values_and_leave_line_numbers_true(rig: Rig) -> None:
    given = {"table": {"k": [1, None, True, 2.5, "\ud800\x00'\"\\"]}, "名": "x", "n": 10**30}
    result = await rig.run("print(table['k'][:4], 名, n)\n\n1/0", variables=given)
    assert result.output == f"[1, None, True, 2.5] x {10**30}\n"
    assert result.status is RunStatus.ERROR
    assert result.exception is not None
    assert (result.exception.name, result.exception.line) == ("ZeroDivisionError", 3)
    assert "\x1b" not in (result.error or "")
    assert "ZeroDivisionError: division by zero" in (result.error or "")
    assert result.execution_count == 1


@pytest.mark.parametrize(
    ("code", "name", "line"),
    [
        ("def f():\n    raise KeyError('k')\n\nf()", "KeyError", 2),
        ("x = 1\ny = = 2", "SyntaxError", 2),
        ("import json\n\njson.loads('{')", "JSONDecodeError", 3),
        ("input('name? ')", "StdinNotImplementedError", 1),
    ],
)
async def test_tracebacks_name_the_line(rig: Rig, code: str, name: str, line: int) -> None:
    result = await rig.run("print('first')\n" + code if name != "SyntaxError" else code)
    assert result.status is RunStatus.ERROR
    assert result.exception is not None
    assert result.exception.name == name
    assert result.exception.line == (line if name == "SyntaxError" else line + 1)
    assert result.output == ("" if name == "SyntaxError" else "first\n")


@pytest.mark.parametrize(
    "code",
    [
        "raise ExceptionGroup('all', [ValueError('one'), ExceptionGroup('inner', [KeyError('two')])])",
        """
import asyncio
async def fail(error): raise error
async with asyncio.TaskGroup() as group:
    group.create_task(fail(ValueError('one')))
    group.create_task(fail(KeyError('two')))""",
        """
try: raise ExceptionGroup('all', [ValueError('one'), KeyError('two')])
except* ValueError as group: raise RuntimeError('again') from group""",
        "raise RuntimeError('again') from ExceptionGroup('all', [ValueError('one'), KeyError('two')])",
    ],
)
async def test_an_exception_group_names_its_members(rig: Rig, code: str) -> None:
    result = await rig.run("\n" + code)
    assert (result.status, result.stderr) == (RunStatus.ERROR, "")
    assert "ValueError: one" in (result.error or "")
    assert "KeyError: 'two'" in (result.error or "")
    assert "Cell In[1], line" in (result.error or "")
    assert "interactiveshell" not in (result.error or "")
    assert result.exception is not None
    assert result.exception.line is not None


@pytest.mark.parametrize(
    ("code", "status", "output"),
    [
        ("import sys; print('x'); sys.exit()", RunStatus.OK, "x\n"),
        ("import sys; print('x'); sys.exit(3)", RunStatus.ERROR, "x\n"),
        ("print('x'); exit(3); print('y')", RunStatus.ERROR, "x\n"),
        ("print('x'); quit(); print('y')", RunStatus.OK, "x\n"),
        ("import unittest\nclass T(unittest.TestCase): pass\nunittest.main(exit=False)", RunStatus.OK, ""),
        ("import asyncio\nawait asyncio.sleep(0)\nprint('awaited')", RunStatus.OK, "awaited\n"),
        ("import asyncio\nasync def main(): print('run')\nasyncio.run(main())", RunStatus.OK, "run\n"),
        (
            "import asyncio\nasync def main(): print('run')\nasyncio.get_event_loop().run_until_complete(main())",
            RunStatus.OK,
            "run\n",
        ),
        (
            "import multiprocessing\nwith multiprocessing.get_context('spawn').Pool(1) as p: p.map(print, ['a', 'b'])",
            RunStatus.OK,
            "a\nb\n",
        ),
        ("import sys; del sys.stdout", RunStatus.OK, ""),
        ("class E(Exception):\n def __str__(self): 1 / 0\nraise E", RunStatus.ERROR, ""),
        ("%timeit -n1 -r1 pass\n!echo from a shell", RunStatus.OK, "from a shell\n"),
        ("", RunStatus.OK, ""),
        ("import os; os.write(1, '多字节'.encode() * 3)", RunStatus.OK, "多字节多字节多字节"),
    ],
)
async def test_ways_to_end(rig: Rig, code: str, status: RunStatus, output: str) -> None:
    result = await rig.run(code)
    assert result.status is status, result.error
    assert result.output.endswith(output)
    assert (result.error is None) == (status is RunStatus.OK)


async def test_stderr_is_kept_apart(rig: Rig) -> None:
    result = await rig.run("import sys, warnings\nprint('out')\nprint('err', file=sys.stderr)\nwarnings.warn('w')")
    assert result.output == "out\n"
    assert result.stderr.startswith("err\n")
    assert "UserWarning: w" in result.stderr


async def test_a_run_past_its_limit_is_interrupted_and_keeps_what_it_made(rig: Rig) -> None:
    result = await rig.run(
        "import time\nopen('made.txt', 'w').write('x')\nprint('working', flush=True)\ntime.sleep(60)", timeout_s=1
    )
    assert (result.status, result.output, set(result.files)) == (RunStatus.TIMEOUT, "working\n", {"made.txt"})
    assert "time limit of 1 s" in (result.error or "")
    assert "KeyboardInterrupt" in (result.error or "")
    assert result.usage is not None


async def test_a_run_that_ignores_the_interrupt_is_killed_and_keeps_what_it_said(rig: Rig) -> None:
    result = await rig.run(
        "import time\nwhile True:\n    try:\n        time.sleep(0.05)\n    except BaseException:\n        print('no')",
        timeout_s=1,
    )
    assert (result.status, result.output) == (RunStatus.TIMEOUT, "no\n")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os._exit(4)", "exit code 4"),
        ("os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    ],
)
async def test_output_written_before_a_crash_is_kept(rig: Rig, code: str, said: str) -> None:
    result = await rig.run(f"import os\nopen('made.txt', 'w').write('x')\nprint('last words')\n{code}")
    assert (result.status, result.output) == (RunStatus.KERNEL_DIED, "last words\n")
    assert said in (result.error or "")
    assert set(result.files) == {"made.txt"}


async def test_a_language_that_is_not_there_is_refused(rig: Rig) -> None:
    with pytest.raises(UnsupportedLanguage, match="python"):
        await rig.service.run(RunRequest(ANONYMOUS, "1", "cobol", {}, 1.0))


async def test_nothing_is_left_of_all_these_runs(rig: Rig) -> None:
    await rig.settle()
