"""A forked kernel is as good as a new one: what user code may do in it, over a real supervisor without a container."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from supervised import Frame, Supervised, supervised

from gateway.supervisors import SupervisorSwitchboard

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Supervised]:
    """One supervisor for all the tests here; what they do leaves it as it was, or restarted."""
    root = Path(tempfile.mkdtemp(prefix="cb-"))
    async with supervised(root, SupervisorSwitchboard(root / "s"), preload=("numpy", "no_such_module")) as kernel:
        yield kernel
    shutil.rmtree(root)


@pytest_asyncio.fixture(loop_scope="module")
async def kernel(shared: Supervised) -> Supervised:
    await shared.ready(len(shared.deaths()) + 1)
    return shared


async def restart(kernel: Supervised) -> None:
    kernel.control("restart")
    await kernel.ready(len(kernel.states("idle")) + 1)


async def test_two_thousand_flushed_lines_all_arrive(kernel: Supervised) -> None:
    run = await kernel.run("for i in range(2000): print('line', i, flush=True)")
    assert run.text() == "".join(f"line {number}\n" for number in range(2000))


async def test_output_that_is_being_packed_when_the_code_ends_comes_before_the_end(kernel: Supervised) -> None:
    """The code ends while the IOPub thread, by its timer, has taken the output and not yet sent it."""
    run = await kernel.run(
        "import sys, threading, time\npacking = threading.Event()\nsession = sys.stdout.session\nmsg = session.msg\n"
        "def slow_msg(msg_type, *arguments, **options):\n"
        "    if msg_type == 'stream':\n"
        "        packing.set(); time.sleep(0.5)\n"
        "    return msg(msg_type, *arguments, **options)\n"
        "session.msg = slow_msg\nprint('last')\nassert packing.wait(10)\n"
    )
    await kernel.run("session.msg = msg")
    assert run.reply()["status"] == "ok", run.reply()
    assert run.text() == "last\n"
    first, *between, last = (frame.msg_type for frame in run.frames if frame.msg_type in ("stream", "status"))
    assert (first, set(between), last) == ("status", {"stream"}, "status")  # the line's end may come by itself


async def test_output_of_child_processes_is_whole_and_before_the_end(kernel: Supervised) -> None:
    run = await kernel.run("import subprocess\nfor _ in range(5): subprocess.run(['echo', '中文é' * 10_000])")
    assert run.text() == ("中文é" * 10_000 + "\n") * 5
    late = [frame for frame in run.frames if frame.content.get("execution_state") == "idle"]
    assert run.frames.index(late[0]) > max(i for i, frame in enumerate(run.frames) if frame.msg_type == "stream")


async def test_a_child_that_writes_without_a_pause_is_kept_up_with(kernel: Supervised) -> None:
    """Its pipe is never empty. What it writes is cut, and whoever writes to the pipe later is still read."""
    # Letters, since each NUL is six characters of JSON.
    command = r"tr '\0' x < /dev/zero | head -c 200000000"
    run = await kernel.run(f"import subprocess\nsubprocess.run({command!r}, shell=True).returncode")
    assert (run.value(), run.text("stderr")) == ("0", "")
    assert run.end.content["usage"]["memory_peak_bytes"] < 400 << 20
    run = await kernel.run("child = subprocess.Popen(['yes'])\nimport time; time.sleep(1)\nprint('done')")
    assert run.reply()["status"] == "ok"
    assert (await kernel.run("child.kill(), child.wait()")).reply()["status"] == "ok"
    # In a run of its own: what a slow machine has yet to read of the child may be more than the run before may say.
    run = await kernel.run("subprocess.run(['seq', '30000']).returncode")
    assert run.value() == "0"
    assert run.text().endswith("29999\n30000\n")


async def test_output_of_shell_commands_and_the_file_descriptor_arrives(kernel: Supervised) -> None:
    run = await kernel.run("!echo shell\nimport os; os.system('echo system; echo err >&2'); os.write(1, b'fd\\n');")
    assert sorted(run.text().split()) == ["fd", "shell", "system"]
    assert run.text("stderr") == "err\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_multiprocessing_works_by_every_method(kernel: Supervised, method: str) -> None:
    (kernel.work_dir / "squares.py").write_text("def square(x): return x * x\n")
    code = (
        "import multiprocessing, squares\n"
        f"with multiprocessing.get_context({method!r}).Pool(2) as pool: result = pool.map(squares.square, range(5))\n"
        "result"
    )
    run = await kernel.run(code)
    assert run.reply()["status"] == "ok", run.reply()
    assert run.value() == "[0, 1, 4, 9, 16]"


async def test_what_forked_children_print_arrives(kernel: Supervised) -> None:
    code = (
        "import os, sys\n"
        "for n in range(3):\n"
        "    if (pid := os.fork()) == 0:\n"
        "        print(f'child {n}', flush=True); os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "print('parent')"
    )
    assert (await kernel.run(code)).text() == "child 0\nchild 1\nchild 2\nparent\n"


async def test_threads_print_and_compute(kernel: Supervised) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def work(n):\n    print(f'thread {n}\\n', end='')\n    return n\n"
        "with ThreadPoolExecutor(4) as pool: total = sum(pool.map(work, range(20)))\n"
        "total"
    )
    run = await kernel.run(code)
    assert run.value() == "190"
    assert sorted(run.text().split("\n")) == sorted(["", *(f"thread {n}" for n in range(20))])


async def test_asyncio_works_at_the_top_level_and_with_processes(kernel: Supervised) -> None:
    code = (
        "import asyncio\n"
        "async def say(n):\n    await asyncio.sleep(0.01 * n)\n    print(n)\n"
        "await asyncio.gather(say(2), say(1), say(0))\n"
        "process = await asyncio.create_subprocess_exec('echo', 'sub', stdout=asyncio.subprocess.PIPE)\n"
        "(await process.communicate(), process.returncode)"
    )
    run = await kernel.run(code)
    assert run.text() == "0\n1\n2\n"
    assert run.value() == "((b'sub\\n', None), 0)"


async def test_linear_algebra_works_after_the_fork(kernel: Supervised) -> None:
    code = (
        "import numpy as np\n"
        "a = np.random.rand(500, 500)\n"
        "q, r = np.linalg.qr(a); u, s, v = np.linalg.svd(a @ a.T)\n"
        "bool(np.allclose(q @ r, a) and s[0] > 0)"
    )
    assert (await kernel.run(code)).value() == "True"


async def test_preloaded_modules_are_there_and_one_that_fails_is_said(kernel: Supervised) -> None:
    assert (await kernel.run("import sys; 'numpy' in sys.modules")).value() == "True"
    await kernel.reconnect()
    failed = kernel.hellos[-1]["failed_preloads"]
    assert list(failed) == ["no_such_module"]
    assert failed["no_such_module"].startswith("ModuleNotFoundError")


async def test_there_is_no_debugger_and_clients_are_told_so(kernel: Supervised) -> None:
    info = await ask(kernel, "kernel_info", {})
    assert "debugger" not in info["supported_features"]
    refused = await ask(kernel, "debug", {"type": "request", "seq": 7, "command": "debugInfo"})
    assert (refused["type"], refused["request_seq"], refused["success"]) == ("response", 7, False)
    assert "no debugger" in refused["message"]
    loaded = "import sys; [name for name in sys.modules if name.startswith(('debugpy', 'pydevd', '_pydevd'))]"
    assert (await kernel.run(loaded)).value() == "[]", "it is a fifth of all imports"
    assert (await kernel.run("import debugpy; debugpy.__name__")).value() == "'debugpy'"


async def ask(kernel: Supervised, what: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ask on the control channel; the reply's content."""
    msg_id = kernel.send_message("control", f"{what}_request", content)

    def replies() -> list[Frame]:
        return [one for one in kernel.frames if (one.msg_type, one.parent_id) == (f"{what}_reply", msg_id)]

    await kernel.until(lambda: bool(replies()))
    return replies()[0].content


async def test_random_numbers_differ_from_fork_to_fork(kernel: Supervised) -> None:
    code = (
        "import random, secrets, uuid, tempfile, json, numpy\n"
        "print(json.dumps([random.random(), float(numpy.random.rand()), float(numpy.random.default_rng().random()),\n"
        "  str(uuid.uuid4()), str(uuid.uuid1()), secrets.token_hex(), tempfile.mktemp()]))"
    )
    draws = []
    for _ in range(3):
        draws.append(json.loads((await kernel.run(code)).text()))
        await restart(kernel)
    for values in zip(*draws, strict=True):
        assert len(set(values)) == 3, values


async def test_a_module_beside_the_code_is_imported(kernel: Supervised) -> None:
    await kernel.run("open('beside.py', 'w').write('answer = 42')")
    assert (await kernel.run("import beside; beside.answer")).value() == "42"


async def test_a_module_beside_the_code_does_not_shadow_the_standard_library(kernel: Supervised) -> None:
    await kernel.run("open('colorsys.py', 'w').write('1 / 0')")
    run = await kernel.run("import colorsys; colorsys.rgb_to_hsv(0, 0, 0)")
    assert run.value().startswith("(0.0, 0.0, 0")


async def test_the_kernel_leads_a_group_of_its_own_and_sees_no_secrets(kernel: Supervised) -> None:
    code = (
        "import os, json, sys\n"
        "print(json.dumps([os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid(), os.getcwd(), os.environ['HOME'],\n"
        "  sorted(n for n in os.environ if n.startswith(('CELLBLOCK', 'JPY_'))), os.read(0, 10).decode()]))"
    )
    group, session, cwd, home, names, stdin = json.loads((await kernel.run(code)).text())
    assert group
    assert session
    assert cwd == str(kernel.work_dir)
    assert home.startswith(str(kernel.work_dir.parent))
    assert names == []
    assert stdin == ""


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "raise SystemExit('bad')"])
async def test_leaving_is_an_exception_and_the_kernel_stays(kernel: Supervised, code: str) -> None:
    deaths = len(kernel.deaths())
    run = await kernel.run(f"stays = 1\n{code}")
    assert (run.reply()["ename"], run.text("stderr")) == ("SystemExit", "")
    assert (await kernel.run("stays")).value() == "1"
    assert len(kernel.deaths()) == deaths


async def test_a_kernel_that_is_asked_to_exit_ends_after_the_run(kernel: Supervised) -> None:
    deaths = len(kernel.deaths())
    run = await kernel.run("print('bye')\nget_ipython().ask_exit()")
    assert (run.end.msg_type, run.reply()["status"], run.text()) == ("done", "ok", "bye\n")
    await kernel.until(lambda: len(kernel.deaths()) > deaths)
    death = kernel.deaths()[-1].content
    assert (death["cause"], death["exit_code"], death["msg_id"]) == ("exited", 0, None)


async def test_a_kernel_that_is_asked_to_exit_takes_nothing_more(kernel: Supervised) -> None:
    idle, deaths = len(kernel.states("idle")), len(kernel.deaths())
    run = await kernel.run("get_ipython().ask_exit()")
    late = await kernel.run("open('late', 'w')")
    assert (run.end.msg_type, late.types()) == ("done", ["rejected"])
    await kernel.ready(idle + 1)
    assert (kernel.deaths()[-1].content["msg_id"], kernel.deaths()[-1].content["never_run"]) == (None, [])
    assert len(kernel.deaths()) == deaths + 1
    assert (await kernel.run("import os; os.path.exists('late')")).value() == "False"


async def test_a_kernel_that_says_it_exits_and_does_not_is_killed(kernel: Supervised) -> None:
    idle = len(kernel.states("idle"))
    saying = "get_ipython().payload_manager.write_payload({'source': 'ask_exit', 'keepkernel': False})"
    assert (await kernel.run(saying)).end.msg_type == "done"
    await kernel.ready(idle + 1)
    death = kernel.deaths()[-1].content
    assert (death["cause"], death["signal"], death["msg_id"]) == ("exited", 9, None)


@pytest.mark.parametrize(
    "code", ["exit(keep_kernel=True)", "exit()", "print('ask_exit')", "raise ValueError('ask_exit')", "'ask_exit'"]
)
async def test_what_only_looks_like_an_exit_is_none(kernel: Supervised, code: str) -> None:
    deaths = len(kernel.deaths())
    await kernel.run(f"stays = 1\n{code}")
    assert (await kernel.run("import time; time.sleep(2.3); stays")).value() == "1"
    assert len(kernel.deaths()) == deaths


async def test_asking_for_input_fails_at_once(kernel: Supervised) -> None:
    run = await kernel.run("input('?')")
    assert run.reply()["ename"] == "StdinNotImplementedError"


def asking(kernel: Supervised, code: str) -> str:
    content = {"code": code, "silent": False, "allow_stdin": True}
    return kernel.send_message("shell", "execute_request", content)


async def test_input_is_asked_for_and_the_answer_reaches_the_code(kernel: Supervised) -> None:
    msg_id = asking(kernel, "import getpass\nprint('hello ' + input('name? '))\nprint(getpass.getpass('secret? '))")
    for number, answer in enumerate(("Ada", "42")):
        await kernel.until(lambda n=number: len(questions(kernel, msg_id)) > n)
        kernel.send_message("stdin", "input_reply", {"value": answer})
    run = await kernel.end_of(msg_id)
    assert questions(kernel, msg_id) == [("name? ", False), ("secret? ", True)]
    assert (run.text(), run.reply()["status"], run.end.msg_type) == ("hello Ada\n42\n", "ok", "done")


def questions(kernel: Supervised, msg_id: str) -> list[tuple[str, bool]]:
    asked = [frame for frame in kernel.frames if frame.msg_type == "input_request"]
    assert {frame.channel for frame in asked} <= {"stdin"}
    return [(frame.content["prompt"], frame.content["password"]) for frame in asked if frame.parent_id == msg_id]


async def test_code_that_waits_for_input_can_be_interrupted(kernel: Supervised) -> None:
    msg_id = asking(kernel, "input()")
    await kernel.until(lambda: bool(questions(kernel, msg_id)))
    kernel.interrupt(msg_id)
    assert (await kernel.end_of(msg_id)).reply()["ename"] == "KeyboardInterrupt"
    assert (await kernel.run("1 + 1")).value() == "2"


async def test_execution_counts_rise_from_one(kernel: Supervised) -> None:
    await restart(kernel)
    replies = [(await kernel.run("pass")).reply()["execution_count"] for _ in range(3)]
    assert replies == [1, 2, 3]


HOSTILE_TEXT = {
    "code with a lone surrogate": ("s = '\ud800'", "UnicodeEncodeError"),
    "code with a NUL": ("print('x')\0", "SyntaxError"),
    "output": ("print('\\ud800x')", None),
    "a result": ("class R:\n def __repr__(self): return '\\ud800'\nR()", None),
    "an exception": ("raise ValueError('\\ud800')", "ValueError"),
    "what is displayed": ("from IPython.display import *\ndisplay(HTML('\\ud800'))", None),
    "what is not finite": ("from IPython.display import *\ndisplay({'a/b': float('nan')}, raw=True)", None),
}


@pytest.mark.parametrize("where", HOSTILE_TEXT)
async def test_text_that_cannot_be_encoded_does_not_silence_the_kernel(kernel: Supervised, where: str) -> None:
    code, exception = HOSTILE_TEXT[where]
    run = await kernel.run(code)
    assert run.reply().get("ename") == exception
    assert (await kernel.run("print('fine')")).text() == "fine\n"


async def test_cpu_time_and_memory_of_a_run_are_its_own(kernel: Supervised) -> None:
    await restart(kernel)  # what other tests have left running is counted too, and may end meanwhile
    quiet = await kernel.run("pass")
    busy = await kernel.run("import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass")
    large = await kernel.run("x = b'x' * (100 << 20); import time; time.sleep(0.6); del x")
    cpu_ms = [run.end.content["usage"]["cpu_ms"] for run in (quiet, busy)]
    assert cpu_ms[1] - cpu_ms[0] > 200
    assert cpu_ms[1] < 5000
    peaks = [run.end.content["usage"]["memory_peak_bytes"] for run in (quiet, large)]
    assert peaks[1] - peaks[0] > 80 << 20


KERNELSPECS = {
    "another-python": ([sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "print(6 * 7)"),
    "another-bash": ([sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"], "echo $((6 * 7))"),
}


@pytest.mark.parametrize("name", KERNELSPECS)
async def test_a_kernel_of_another_kind_runs_from_its_kernelspec(
    tmp_path: Path, short_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    argv, code = KERNELSPECS[name]
    (tmp_path / "kernels" / name).mkdir(parents=True)
    spec = {"argv": argv, "display_name": name, "language": name, "env": {"FROM_THE_SPEC": "yes"}}
    (tmp_path / "kernels" / name / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    async with supervised(short_dir, SupervisorSwitchboard(short_dir / "s"), kernel_name=name) as kernel:
        run = await kernel.run(code)
        assert run.text().strip() == "42"
        assert run.end.msg_type == "done"
        kernel.control("restart")
        await kernel.ready(generation=2)
        assert (await kernel.run(code)).text().strip() == "42"
