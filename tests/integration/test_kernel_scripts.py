"""What scripts take for granted: streams, exits, arguments, files that nobody closes, odd exceptions."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import lzma
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from supervised import Supervised, supervised

from gateway.supervisors import SupervisorSwitchboard

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kernel() -> AsyncIterator[Supervised]:
    """One kernel for all the tests here: each must leave it usable, and none may end it."""
    root = Path(tempfile.mkdtemp(prefix="cb-"))
    async with supervised(root, SupervisorSwitchboard(root / "s")) as supervisor:
        yield supervisor
        assert supervisor.deaths() == []
    shutil.rmtree(root)


async def test_a_file_that_is_never_closed_comes_back_and_grows_with_later_runs(kernel: Supervised) -> None:
    code = "import csv\nreport = open('report.csv', 'w')\ncsv.writer(report).writerow(['a', 1])"
    assert (await kernel.run(code)).files() == {"report.csv": b"a,1\r\n"}
    assert (await kernel.run("csv.writer(report).writerow(['b', 2])")).files() == {"report.csv": b"a,1\r\nb,2\r\n"}
    assert (await kernel.run("report.seek(0); report.write('z')")).files() == {"report.csv": b"z,1\r\nb,2\r\n"}
    assert (await kernel.run("report.closed")).files() == {}


UNCLOSED = {
    "bytes": "f = open('unclosed', 'wb'); f.write(b'text')",
    "read and write": "f = open('unclosed', 'w+b'); f.write(b'text')",
    "a large buffer": "f = open('unclosed', 'w', buffering=1 << 20); f.write('text')",
    "an attribute": "class A: pass\na = A(); a.f = open('unclosed', 'w'); a.f.write('text')",
    "a closure": "def made():\n f = open('unclosed', 'w')\n return lambda: f.write('text')\nw = made(); w()",
    "a wrapper": "import io; f = io.TextIOWrapper(io.BufferedWriter(io.FileIO('unclosed', 'w'))); f.write('text')",
    "a codec": "import codecs; f = codecs.open('unclosed', 'w', 'utf-8'); f.write('text')",
    "a named temporary file": (
        "import os, tempfile\nf = tempfile.NamedTemporaryFile('w', dir='.'); f.write('text')\n"
        "os.link(f.name, 'unclosed')"
    ),
    "a handler that keeps its stream": (
        "import logging; h = logging.StreamHandler(open('unclosed', 'w')); h.flush = lambda: None; h.terminator = ''\n"
        "h.emit(logging.makeLogRecord({'msg': 'text'}))"
    ),
    "the standard output": "import sys; sys.stdout = open('unclosed', 'w'); print('text', end='')",
    "an error after it": "f = open('unclosed', 'w'); f.write('text'); 1 / 0",
}


@pytest.mark.parametrize("how", UNCLOSED)
async def test_what_is_buffered_is_in_the_file_when_the_run_ends(kernel: Supervised, how: str) -> None:
    files = (await kernel.run(UNCLOSED[how])).files()
    await kernel.run("f = a = w = h = None; import os; os.remove('unclosed')")
    assert files["unclosed"] == b"text"


async def test_code_may_close_descriptors_that_are_not_its_own(kernel: Supervised) -> None:
    code = (
        "import os\npipes = get_ipython().streams._pipes; left = {n: os.dup(pipe) for n, pipe in pipes.items()}\n"
        "[os.close(pipe) for pipe in pipes.values()]"
    )
    try:
        assert (await kernel.run(code)).reply()["status"] == "ok"
        assert (await kernel.run("print('next')")).text() == "next\n"
        assert (await kernel.run("f = [open('other', 'w') for _ in pipes]; os.close(1)")).reply()["status"] == "ok"
        assert (await kernel.run("print('next')")).text() == "next\n"
        assert (await kernel.run("[g.close() for g in f]; os.path.getsize('other')")).value() == "0"
    finally:
        await kernel.run("pipes.update(left); os.remove('other'); del f")


async def test_buffers_are_looked_for_only_while_a_file_is_open_for_writing() -> None:
    """The look goes through all objects, and takes longer the more of them a session has."""
    root = Path(tempfile.mkdtemp(prefix="cb-"))
    async with supervised(root, SupervisorSwitchboard(root / "s")) as kernel:
        await kernel.run(
            "import gc, tempfile\nlooks, all_objects = [], gc.get_objects\n"
            "def get_objects(*a): looks.append(1); return all_objects(*a)\ngc.get_objects = get_objects"
        )
        assert (await kernel.run("len(looks)")).value() == "0"
        assert (await kernel.run("f = tempfile.TemporaryFile(); len(looks)")).value() == "0"
        assert (await kernel.run("f.close(); len(looks)")).value() == "1"
        assert (await kernel.run("len(looks)")).value() == "1"
    shutil.rmtree(root)


async def test_archives_that_nobody_closes_are_whole_after_each_run_that_writes(kernel: Supervised) -> None:
    first = await kernel.run(
        "import bz2, gzip, lzma, zipfile\ng = gzip.open('unclosed.gz', 'wt'); g.write('one')\n"
        "b = bz2.open('unclosed.bz2', 'wt'); b.write('one'); x = lzma.open('unclosed.xz', 'wb'); x.write(b'one')\n"
        "z = zipfile.ZipFile('unclosed.zip', 'w'); z.writestr('one', '1')"
    )
    assert (await kernel.run("1 + 1")).files() == {}
    second = await kernel.run("g.write(' two'); b.write(' two'); x.write(b' two'); z.writestr('two', '2')")
    assert (await kernel.run("1 + 1")).files() == {}
    third = await kernel.run("g.write(''); [f.close() for f in (g, b, x, z)]")
    last = {**second.files(), **third.files()}
    for files, text, names in (
        (first.files(), "one", ["one"]),
        (second.files(), "one two", ["one", "two"]),
        (last, "one two", ["one", "two"]),
    ):
        assert gzip.decompress(files["unclosed.gz"]).decode() == text
        assert bz2.decompress(files["unclosed.bz2"]).decode() == text
        assert lzma.decompress(files["unclosed.xz"]).decode() == text
        with zipfile.ZipFile(io.BytesIO(files["unclosed.zip"])) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == names


async def test_files_are_whole_where_no_descriptor_is_left(kernel: Supervised) -> None:
    code = (
        "import os, resource\nf = open('unclosed', 'w'); f.write('text')\n"
        "limits = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))"
    )
    run = await kernel.run(code)
    assert (run.reply()["status"], run.files()) == ("ok", {"unclosed": b"text"})
    await kernel.run("resource.setrlimit(resource.RLIMIT_NOFILE, limits); f = None; os.remove('unclosed')")


async def test_an_old_lzma_file_is_left_to_the_code(kernel: Supervised) -> None:
    await kernel.run("import lzma\nx = lzma.open('unclosed.lzma', 'wb', format=lzma.FORMAT_ALONE); x.write(b'one')")
    files = (await kernel.run("x.write(b' two'); x.close()")).files()
    assert lzma.decompress(files["unclosed.lzma"]) == b"one two"


async def test_a_pipe_that_nobody_reads_does_not_hold_up_the_end(kernel: Supervised) -> None:
    code = (
        "import os; reader, writer = os.pipe(); os.set_blocking(writer, False)\n"
        "while True:\n    try: os.write(writer, b'x' * 4096)\n    except BlockingIOError: break\n"
        "os.set_blocking(writer, True); full = os.fdopen(writer, 'wb'); full.write(b'x')\n"
        "file = open('beside', 'w'); file.write('text')"
    )
    assert (await kernel.run(code)).files() == {"beside": b"text"}
    await kernel.run("os.read(reader, 1 << 20); full.close(); os.close(reader)")


EXITS = {
    "exit()": "",
    "quit()": "",
    "exit(0)": "0",
    "quit(None)": "",
    "exit(False)": "0",
    "exit(1)": "1",
    "quit('no data')": "no data",
    "import sys; sys.exit(0)": "0",
    "import enum, sys; sys.exit(enum.IntEnum('Code', ['OK'], start=0).OK)": "0",
    "import sys; sys.exit('')": "''",
    "import sys; sys.exit('0')": "'0'",
    "raise SystemExit": "",
    "raise SystemExit(3)": "3",
    "import builtins; builtins.exit(4)": "4",
    "%exit": "",
    "%quit 5": "5",
    "exit(keep_kernel=True)": "",
}


@pytest.mark.parametrize("code", EXITS)
async def test_leaving_ends_the_run_and_not_the_session(kernel: Supervised, code: str) -> None:
    run = await kernel.run(f"stays = 1\n{code}\nprint('not reached')")
    assert (run.reply()["ename"], run.reply()["evalue"]) == ("SystemExit", EXITS[code])
    assert (run.text(), run.text("stderr"), run.end.msg_type) == ("", "", "done")
    assert (await kernel.run("stays")).value() == "1"


@pytest.mark.parametrize("code", ["exit", "quit"])
async def test_a_word_is_enough_to_leave(kernel: Supervised, code: str) -> None:
    assert (await kernel.run(code)).reply()["ename"] == "SystemExit"


async def test_a_module_can_leave(kernel: Supervised) -> None:
    (kernel.work_dir / "leaving.py").write_text("exit(7)")
    assert (await kernel.run("import leaving")).reply()["evalue"] == "7"


async def test_arguments_are_those_of_a_script(kernel: Supervised) -> None:
    code = (
        "import argparse, sys\nparser = argparse.ArgumentParser(); parser.add_argument('--n', default=3)\n"
        "print(sys.argv, parser.parse_args())\nparser.print_usage()"
    )
    assert (await kernel.run(code)).text() == "['main.py'] Namespace(n=3)\nusage: main.py [-h] [--n N]\n"


async def test_a_script_knows_where_it_would_be(kernel: Supervised) -> None:
    code = (
        "from pathlib import Path\nprint(Path(__file__).name, Path(__file__).parent == Path.cwd())\n"
        "print('__file__' in globals())\nimport multiprocessing\n"
        "with multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.map(abs, [-1]))\n"
        "(Path(__file__).parent / 'beside').write_text('x');"
    )
    run = await kernel.run(code)
    assert run.text() == "main.py True\nFalse\n[1]\n"
    assert run.files() == {"beside": b"x"}


async def test_input_is_at_its_end_where_nobody_can_be_asked(kernel: Supervised) -> None:
    code = (
        "import getpass\nfor ask in (input, getpass.getpass):\n"
        "    try:\n        while True: ask('> ')\n    except EOFError as error: print('end', type(error).__name__)"
    )
    assert (await kernel.run(code)).text() == "end StdinNotImplementedError\n" * 2
    assert (await kernel.run("input()")).reply()["ename"] == "StdinNotImplementedError"


async def test_the_name_of_exit_among_others_says_what_it_does(kernel: Supervised) -> None:
    assert (await kernel.run("x = 1\nexit")).value() == "Use exit() or quit() to end the run."


async def test_unittest_main_runs_the_tests_of_the_code(kernel: Supervised) -> None:
    code = "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(1, {})\nunittest.main()"
    good, bad = await kernel.run(code.format(1)), await kernel.run(code.format(2))
    assert "Ran 1 test" in good.text("stderr")
    assert good.reply()["evalue"] == "0"
    assert bad.reply()["evalue"] == "1"


STREAM_CODE = {
    "bytes": ("sys.stdout.buffer.write('é\\n'.encode()); sys.stdout.buffer.flush()", "é\n"),
    "half a character": ("for byte in 'é\\n'.encode(): sys.stdout.buffer.write(bytes([byte]))", "é\n"),
    "reconfigure": ("sys.stdout.reconfigure(encoding='utf-8', line_buffering=True); print('é')", "é\n"),
    "a wrapper": ("sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8'); print('é')", "é\n"),
    "a wrapper that is detached": (
        "w = sys.stdout = io.TextIOWrapper(sys.stdout.buffer); print('a'); w.detach(); sys.stdout = sys.__stdout__",
        "a\n",
    ),
    "a codec": ("sys.stdout = codecs.getwriter('utf-8')(sys.stdout.detach()); print('é')", "é\n"),
    "a file over the descriptor": (
        "sys.stdout = open(sys.stdout.fileno(), 'w', encoding='utf-8', buffering=1); print('é')",
        "é\n",
    ),
    "fdopen": ("sys.stdout = os.fdopen(sys.stdout.fileno(), 'w'); print('é')", "é\n"),
    "the original": ("sys.stdout = sys.__stdout__; print('é')", "é\n"),
    "a child's": ("subprocess.run(['echo', 'é'], stdout=sys.stdout)", "é\n"),
    "attributes": (
        "print(sys.stdout.encoding, sys.stdout.isatty(), sys.stdout.fileno(), sys.stderr.fileno())",
        "utf-8 False 1 2\n",
    ),
    "input": ("print(repr(sys.stdin.read()), repr(sys.stdin.buffer.read()), sys.stdin.isatty())", "'' b'' False\n"),
    "deleted": ("print('a'); del sys.stdout", "a\n"),
    "none": ("print('a'); sys.stdout = None", "a\n"),
    "all deleted": ("print('a'); del sys.stdout, sys.stderr, sys.stdin", "a\n"),
    "closed": ("print('a'); sys.stdout.close(); sys.stderr.close(); sys.stdin.close()", "a\n"),
    "closed descriptors": ("print('a'); os.close(1); os.close(2)", "a\n"),
    "without a flush": ("sys.stdout = type('W', (), {'write': lambda self, text: None})(); print('a')", ""),
}


@pytest.mark.parametrize("what", STREAM_CODE)
async def test_streams_are_those_of_a_script_and_put_back_after_it(kernel: Supervised, what: str) -> None:
    code, text = STREAM_CODE[what]
    run = await kernel.run(f"import codecs, io, os, subprocess, sys\n{code};")
    assert (run.text(), run.reply()["status"]) == (text, "ok")
    code = "import gc; gc.collect()\nprint('printed'); os.system('echo child; echo error >&2'); sys.stdin.readline()"
    run = await kernel.run(code)
    assert (run.text(), run.text("stderr"), run.value()) == ("printed\nchild\n", "error\n", "''")


ODD_EXCEPTIONS = {
    "str raises": ("class E(Exception):\n def __str__(self): raise ValueError('x')\nraise E", "E"),
    "str is no text": ("class E(Exception):\n def __str__(self): return 3\nraise E", "E"),
    "str leaves": ("class E(Exception):\n def __str__(self): raise SystemExit\nraise E", "E"),
    "repr raises too": ("class E(Exception):\n def __str__(self): 1 / 0\n __repr__ = __str__\nraise E", "E"),
    "a name that raises": (
        "class M(type):\n @property\n def __name__(cls): 1 / 0\nclass E(Exception, metaclass=M): pass\nraise E",
        "E",
    ),
    "a traceback that is none": (
        "class E(Exception):\n def _render_traceback_(self): return [1, object()]\nraise E",
        "E",
    ),
    "a traceback that leaves": ("class E(Exception):\n def _render_traceback_(self): raise SystemExit\nraise E", "E"),
    "a group": ("class G(ExceptionGroup): pass\nraise G('g', [ValueError('a')])", "G"),
    "a huge message": ("raise ValueError('x' * 10_000_000)", "ValueError"),
    "arguments that are no text": ("raise ValueError(object(), '\\ud800', b'x')", "ValueError"),
    "a handler of the user's": (
        "get_ipython().set_custom_exc((ZeroDivisionError,), lambda *_, **__: 1 / 0)\n1 / 0",
        "ZeroDivisionError",
    ),
    "no stderr to tell it": ("import sys\nsys.stderr = None\n1 / 0", "ZeroDivisionError"),
    "a hook of the user's": ("import sys\nsys.excepthook = None\n1 / 0", "ZeroDivisionError"),
    "an endless recursion": ("def f(): f()\nf()", "RecursionError"),
    "a bare BaseException": ("raise BaseException('x')", "BaseException"),
}


@pytest.mark.parametrize("what", ODD_EXCEPTIONS)
async def test_whatever_is_raised_is_answered_by_its_name(kernel: Supervised, what: str) -> None:
    code, name = ODD_EXCEPTIONS[what]
    run = await kernel.run(code)
    await kernel.run("get_ipython().set_custom_exc((), None)")
    assert (run.reply()["status"], run.reply()["ename"]) == ("error", name)
    assert (await kernel.run("1 + 1")).value() == "2"


RECURSIONS = {
    "as deep as Python goes": ("def f(): f()\nf()", r"the frame above is repeated \d{3} more times"),
    "as deep as the code wants": (
        "import sys\nsys.setrecursionlimit(20_000)\ndef f(): f()\nf()",
        r"the frame above is repeated 199\d\d more times",
    ),
    "in turn": ("def f(): g()\ndef g():\n    f()\nf()", r"the 2 frames above are repeated \d{3} more times"),
    "in a cause": (
        "def f(): f()\ntry: f()\nexcept RecursionError as error: raise ValueError('too deep') from error",
        r"the frame above is repeated \d{3} more times",
    ),
    "to an end": (
        "def f(n):\n    if n: f(n - 1)\n    1 / 0\nf(300)",
        r"the frame above is repeated 299 more times(?s:.*)line 3, in f",
    ),
    "without a cycle": (
        "exec('\\n'.join(f'def f{n}(): f{n + 1}()' for n in range(400)) + '\\ndef f400(): 1 / 0')\nf0()",
        r"30\d frames left out(?s:.*)f400",
    ),
}


@pytest.mark.parametrize("how", RECURSIONS)
async def test_the_frames_of_a_recursion_are_counted_and_not_all_made_into_text(kernel: Supervised, how: str) -> None:
    code, told = RECURSIONS[how]
    run = await kernel.run(code)
    await kernel.run("import sys; sys.setrecursionlimit(1000)")
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in run.reply()["traceback"]]
    assert re.search(told, "\n".join(lines))
    assert len(lines) < 120
    assert lines[-1].startswith(run.reply()["ename"])


@pytest.mark.parametrize("name", ["__repr__", "_repr_html_", "_ipython_display_", "_repr_mimebundle_"])
@pytest.mark.parametrize("raises", ["raise KeyError('x')", "raise SystemExit(2)", "raise KeyboardInterrupt"])
async def test_a_result_that_cannot_be_shown_is_answered(kernel: Supervised, name: str, raises: str) -> None:
    run = await kernel.run(f"class R:\n def {name}(self, *_, **__): {raises}\nR()")
    assert run.end.msg_type == "done"
    assert (await kernel.run("1 + 1")).value() == "2"


async def test_a_result_that_cannot_be_shown_is_an_error_by_its_name_and_of_its_run_alone(kernel: Supervised) -> None:
    run = await kernel.run("class R:\n def _repr_html_(self): raise KeyError('x')\nR()")
    assert (run.reply()["status"], run.reply()["ename"], run.reply()["evalue"]) == ("error", "KeyError", "'x'")
    run = await kernel.run("import asyncio; await asyncio.sleep(0)")
    assert run.reply()["status"] == "ok"


async def test_a_replaced_displayhook_is_the_runs_alone(kernel: Supervised) -> None:
    assert (await kernel.run("import sys; sys.displayhook = None\n1")).end.msg_type == "done"
    assert (await kernel.run("1 + 1")).value() == "2"


async def test_a_cancelled_request_is_answered(kernel: Supervised) -> None:
    run = await kernel.run("import asyncio\nfor task in asyncio.all_tasks(): task.cancel()\nawait asyncio.sleep(0)")
    assert run.end.msg_type == "done"
    assert (await kernel.run("1 + 1")).value() == "2"


@pytest.mark.parametrize(
    ("code", "status"), [("pass", 0), ("import sys; sys.exit(4)", 4), ("exit('no')", 1), ("1 / 0", 1)]
)
async def test_a_forked_child_ends_where_the_code_does(kernel: Supervised, code: str, status: int) -> None:
    run = await kernel.run(
        f"import os\nif os.fork() == 0:\n    print('child')\n    {code}\nelse:\n"
        "    print(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    assert (run.text(), run.reply()["status"]) == (f"child\n{status}\n", "ok")
    assert [frame.msg_type for frame in run.frames].count("execute_reply") == 1


async def test_children_are_asked_for_no_colours(kernel: Supervised) -> None:
    code = "import os; [os.environ.get(n) for n in ('TERM', 'FORCE_COLOR', 'CLICOLOR', 'CLICOLOR_FORCE')]"
    assert (await kernel.run(code)).value() == "['dumb', None, None, None]"


SILENCED = """
session = get_ipython().kernel.session
send = session.send
def send_no_reply(stream, message, *arguments, **options):
    if message != 'execute_reply':
        return send(stream, message, *arguments, **options)
    del session.send
    return {'content': {'status': 'ok'}}
session.send = send_no_reply
"""


async def test_a_reply_that_never_comes_is_made_once_the_kernel_is_idle(kernel: Supervised) -> None:
    began_s = time.monotonic()
    run = await kernel.run(f"print('said')\nopen('made', 'w').write('x')\n{SILENCED}")
    assert time.monotonic() - began_s < 20
    assert (run.reply()["ename"], run.text(), run.files(), run.end.msg_type) == (
        "MissingReply",
        "said\n",
        {"made": b"x"},
        "done",
    )
    assert (await kernel.run("1 + 1")).value() == "2"


async def test_a_forged_idle_does_not_end_a_run_that_goes_on(kernel: Supervised) -> None:
    run = await kernel.run(
        "import time\nget_ipython().kernel._publish_status('idle', 'shell')\ntime.sleep(1.5)\nprint('end')"
    )
    assert (run.reply()["status"], run.text(), run.end.msg_type) == ("ok", "end\n", "done")
    asked = [f for f in kernel.frames if f.msg_type == "kernel_info_reply"]
    assert asked == []


IDLE = "kernel = get_ipython().kernel\n{loop}: kernel._publish_status('idle', 'shell')\n"


async def test_a_kernel_that_is_idle_all_the_time_holds_nobody_up(kernel: Supervised) -> None:
    msg_id = kernel.send(IDLE.format(loop="print('begun', flush=True)\nwhile True"))
    await kernel.until(
        lambda: any(f.parent_id == msg_id and "begun" in str(f.content.get("text")) for f in kernel.frames)
    )
    await asyncio.sleep(3)  # as long as it takes to fill the queues on the way to the kernel
    kernel.interrupt(msg_id, grace_s=30)
    assert (await kernel.end_of(msg_id)).reply()["ename"] == "KeyboardInterrupt"
    assert (await kernel.run("1 + 1")).value() == "2"


async def test_a_run_that_is_answered_and_never_idle_ends(kernel: Supervised) -> None:
    code = (
        "kernel = get_ipython().kernel; publish = kernel._publish_status\n"
        "def publish_nothing(status, *arguments, **options):\n    if status == 'idle': del kernel._publish_status\n"
        "kernel._publish_status = publish_nothing\nopen('made', 'w').write('y')\nprint('said')"
    )
    began_s = time.monotonic()
    run = await kernel.run(code)
    assert time.monotonic() - began_s < 20
    assert (run.reply()["status"], run.text(), run.files(), run.end.msg_type) == (
        "ok",
        "said\n",
        {"made": b"y"},
        "done",
    )
    assert (await kernel.run("1 + 1")).value() == "2"


async def test_no_interrupt_is_too_early(kernel: Supervised) -> None:
    await kernel.run("stays = 1")
    for number in range(40):
        msg_id = kernel.send("while True: pass")
        await asyncio.sleep(number % 10 / 1000)
        kernel.interrupt(msg_id, grace_s=30)
        run = await kernel.end_of(msg_id)
        assert run.reply()["ename"] == "KeyboardInterrupt"
    assert (await kernel.run("stays")).value() == "1"
