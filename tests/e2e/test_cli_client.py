"""The commands that talk to a gateway: run, shell, sessions, runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest
import serve_rig
from held_ports import held_port
from store_fixtures import copy_template_data_dir
from typer.testing import CliRunner, Result

from gateway.cli import waiting
from gateway.cli.commands import app


@pytest.fixture(scope="module")
def gateway() -> Iterator[serve_rig.Gateway]:
    directory = Path(tempfile.mkdtemp(prefix="cb-"))
    copy_template_data_dir(directory / "d")
    gateway = serve_rig.fork(directory / "d")
    yield gateway
    gateway.process.terminate()
    gateway.process.wait(60)
    shutil.rmtree(directory)


@pytest.fixture(autouse=True)
def _no_word_about_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, standard error has what a test expects there."""
    monkeypatch.setattr(waiting, "_MOMENT_S", 600.0)


def cellblock(gateway: serve_rig.Gateway, *arguments: str, text: str = "") -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", gateway.url], input=text)


def run_code(gateway: serve_rig.Gateway, code: str, *arguments: str) -> Result:
    return cellblock(gateway, "run", "-", *arguments, text=code)


def as_json(result: Result) -> Any:
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)


def test_code_runs_and_is_shown(gateway: serve_rig.Gateway, tmp_path: Path) -> None:
    file, data = tmp_path / "a.py", tmp_path / "data.txt"
    file.write_text("import sys\nprint(x, y, open('in.txt').read())\nprint('e', file=sys.stderr)\nx * 2")
    data.write_text("data")
    done = cellblock(gateway, "run", str(file), "--var", "x=21", "--var", "y=text", "--file", f"{data}=in.txt")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "21 text data\n42\n", "e\n")


def test_code_that_fails_is_exit_status_1(gateway: serve_rig.Gateway) -> None:
    done = run_code(gateway, "print('before')\n1/0")
    assert (done.exit_code, done.stdout) == (1, "before\n")
    assert "ZeroDivisionError" in done.stderr
    done = run_code(gateway, "import time; time.sleep(30)", "--timeout", "0.3")
    assert done.exit_code == 1
    assert "time limit of 0.3 s" in done.stderr


def test_a_value_that_json_does_not_have_is_text(gateway: serve_rig.Gateway) -> None:
    done = run_code(gateway, "print([a, b, c])", "--var", "a=NaN", "--var", "b=1e999", "--var", "c=" + "[" * 100_000)
    assert done.stdout.startswith("['NaN', '1e999', '[[[")


def test_what_cannot_be_saved_is_said(gateway: serve_rig.Gateway, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    done = run_code(gateway, "open('a', 'w').write('x')", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert done.stderr.startswith("cellblock: The run made 'a', which cannot be saved in ")


@pytest.mark.parametrize("closing", ["| true", ">&-", "2>&- >&-"])
def test_an_output_that_nobody_reads_is_no_traceback(gateway: serve_rig.Gateway, closing: str) -> None:
    command = f"{sys.executable} -m gateway run - --url {gateway.url}"
    code = "import time; print(1, flush=True); time.sleep(0.5); print(2)"
    done = subprocess.run(
        ["/bin/sh", "-c", f"{command} {closing}"],
        input=code,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=serve_rig.REPOSITORY,
    )
    assert done.stdout == ""
    assert all(line.startswith("cellblock: Waiting for the gateway") for line in done.stderr.splitlines()), done.stderr


@pytest.mark.parametrize("command", [["run", "-"], ["shell"]])
def test_a_closed_input_is_wrong_usage(gateway: serve_rig.Gateway, command: list[str]) -> None:
    line = " ".join([sys.executable, "-m", "gateway", *command, "--url", gateway.url, "<&-"])
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, timeout=60, check=False, cwd=serve_rig.REPOSITORY
    )
    assert done.returncode == 2
    assert "Standard input is closed." in done.stderr


def test_an_answer_as_json(gateway: serve_rig.Gateway) -> None:
    answer = as_json(run_code(gateway, "print('\\ud800')\n6 * 7", "--json"))
    assert (answer["status"], answer["results"]) == ("ok", [{"text/plain": "42"}])
    assert as_json(run_code(gateway, "1/0", "--json"))["exception"]["name"] == "ZeroDivisionError"


def test_what_the_code_made_is_saved_or_linked(gateway: serve_rig.Gateway, tmp_path: Path) -> None:
    code = "import os; os.mkdir('sub'); open('sub/a.txt', 'w').write('content')"
    done = run_code(gateway, code)
    assert f"[sub/a.txt] {gateway.url}/file/" in done.stderr
    done = run_code(gateway, code, "--out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "sub" / "a.txt").read_text() == "content"
    assert f"[sub/a.txt] {tmp_path / 'out' / 'sub' / 'a.txt'}" in done.stderr
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "sub").symlink_to(tmp_path / "out")
    done = run_code(gateway, code, "--out", str(tmp_path / "linked"))
    assert done.exit_code == 1
    assert "outside" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "/no/such/file"],
        ["run", "-", "--var", "x"],
        ["run", "-", "--timeout", "0"],
        ["run", "-", "--url", "localhost:8000"],
        ["runs", "list", "--limit", "0"],
        ["sessions", "show"],
        ["sessions", "nonsense"],
    ],
)
def test_bad_usage_is_exit_status_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize("command", [["run", "-"], ["sessions"], ["runs"], ["shell"]])
def test_no_gateway_is_one_sentence_at_once(command: list[str]) -> None:
    with held_port() as port:
        done = CliRunner().invoke(app, [*command, "--url", f"http://127.0.0.1:{port}"])
    assert done.exit_code == 1
    assert done.stderr.startswith("cellblock: No gateway answers at ")
    assert done.stderr.count("\n") == 1


def test_sessions_and_runs_are_listed_and_shown(gateway: serve_rig.Gateway, tmp_path: Path) -> None:
    made = as_json(run_code(gateway, "x = 5\nprint('out')\nx", "--session", "listed", "--json"))
    assert as_json(run_code(gateway, "x", "--session", "listed", "--json"))["results"] == [{"text/plain": "5"}]
    assert [session["session_id"] for session in as_json(cellblock(gateway, "sessions", "--json"))] == ["listed"]
    listed = cellblock(gateway, "sessions", "list").stdout.splitlines()
    assert listed[0].split() == ["SESSION", "STATE", "LANGUAGE", "RUNS", "LAST", "USED", "ENDS", "TIME", "USED"]
    assert listed[1].split()[:4] == ["listed", "idle", "python", "2"]
    assert as_json(cellblock(gateway, "sessions", "show", "listed"))["runs"] == 2
    assert len(as_json(cellblock(gateway, "runs", "list", "--session", "listed", "--json"))) == 2
    assert made["run_id"] in cellblock(gateway, "runs", "list", "--session", "listed").stdout
    shown = cellblock(gateway, "runs", "show", made["run_id"])
    assert shown.stdout == "out\n5\n"
    assert f"{made['run_id']} ok\n  x = 5\n" in shown.stderr
    followed = cellblock(gateway, "runs", "follow", made["run_id"])
    assert (followed.exit_code, followed.stdout) == (0, "out\n5\n")
    notebook = tmp_path / "s.ipynb"
    assert cellblock(gateway, "sessions", "notebook", "listed", str(notebook)).exit_code == 0
    assert json.loads(notebook.read_text())["nbformat"] == 4
    assert cellblock(gateway, "sessions", "restart", "listed").exit_code == 0
    assert cellblock(gateway, "sessions", "end", "listed").exit_code == 0
    again = cellblock(gateway, "sessions", "end", "listed")
    assert (again.exit_code, again.stderr) == (1, "cellblock: There is no session by that id.\n")
    assert cellblock(gateway, "sessions").stderr == "There are no sessions.\n"


def open_shell(gateway: serve_rig.Gateway, state: Path, *arguments: str) -> pexpect.spawn[str]:
    environment = {**os.environ, "XDG_STATE_HOME": str(state), "TERM": "xterm", "PYTHONPATH": str(serve_rig.REPOSITORY)}
    command = ["-m", "gateway", "shell", *arguments, "--url", gateway.url]
    return pexpect.spawn(sys.executable, command, env=environment, encoding="utf-8", timeout=60, dimensions=(30, 100))


def test_the_shell_keeps_a_session_and_completes(gateway: serve_rig.Gateway, tmp_path: Path) -> None:
    shell = open_shell(gateway, tmp_path)
    shell.expect(r"In \[1\]")
    shell.send("for i in range(2):\r")
    shell.expect(r"\.\.\.:")
    shell.send("print('n', i + 20)\r\r")
    shell.expect(r"n 20\r\nn 21")
    shell.expect(r"In \[2\]")
    shell.send('name = input("wh" "o? ")\r')  # whose echo is not the question
    shell.expect(r"who\?")
    shell.send("Ada\r")
    shell.expect(r"In \[3\]")
    shell.send("name\r")
    shell.expect("'Ada'")
    shell.expect(r"In \[4\]")
    shell.send("name.capitali")
    press_tab(shell, "ze")
    shell.send("()\r")
    shell.expect(r"In \[5\]")
    shell.send("print('asleep'); import time; time.sleep(100)\r")
    shell.expect("asleep\r\n")
    shell.sendintr()
    shell.expect("KeyboardInterrupt")
    shell.expect(r"In \[6\]")
    shell.sendeof()
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 0
    assert not as_json(cellblock(gateway, "sessions", "--json")), "its session has ended with it"
    history = tmp_path / "cellblock" / "history"
    assert "for i in range(2):" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


def test_completion_comes_back_with_a_new_kernel(gateway: serve_rig.Gateway, tmp_path: Path) -> None:
    shell = open_shell(gateway, tmp_path, "anew")
    shell.expect(r"In \[1\]")
    complete(shell)
    shell.send("import os; os._exit(1)\r")
    shell.expect("The variables are gone")
    shell.expect(r"In \[\d+\]")
    shell.send("12 * 12\r")
    shell.expect("144")
    shell.expect(r"In \[\d+\]")
    complete(shell)
    assert cellblock(gateway, "sessions", "end", "anew").exit_code == 0
    shell.send("13 * 13\r")
    shell.expect("169")
    shell.expect(r"In \[\d+\]")
    complete(shell)
    shell.sendeof()
    shell.expect(pexpect.EOF)
    shell.close()
    cellblock(gateway, "sessions", "end", "anew")


def press_tab(shell: pexpect.spawn[str], rest: str) -> None:
    """Press Tab until the rest of the word is drawn: a kernel that is slow to answer is not waited for long."""
    deadline_s = time.monotonic() + serve_rig.PATIENCE_S
    shell.send("\t")
    while shell.expect([rest, pexpect.TIMEOUT], timeout=7):
        assert time.monotonic() < deadline_s, shell.before
        shell.send("\t")


def complete(shell: pexpect.spawn[str]) -> None:
    """Have Tab complete a method's name, and call it."""
    shell.send("'ab'.capitali")
    press_tab(shell, "ze")
    shell.send("()\r")
    shell.expect("'Ab'")
    shell.expect(r"In \[\d+\]")


@contextmanager
def piped_shell(gateway: serve_rig.Gateway, session: str) -> Iterator[subprocess.Popen[str]]:
    """A shell without a terminal, once its session is there, which ends with it."""
    # What a script starts in the background, these tests perhaps, ignores SIGINT, and so does what it starts.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "gateway", "shell", session, "--url", gateway.url]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=serve_rig.REPOSITORY, text=True, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT
    ) as shell:
        try:
            deadline_s = time.monotonic() + serve_rig.PATIENCE_S
            while cellblock(gateway, "sessions", "show", session).exit_code:
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            yield shell
        finally:
            shell.kill()
    assert cellblock(gateway, "sessions", "show", session).exit_code == 1


def test_ctrl_c_without_a_terminal_ends_the_wait_for_a_line(gateway: serve_rig.Gateway) -> None:
    with piped_shell(gateway, "waits-for-a-line") as shell:
        shell.send_signal(signal.SIGINT)
        assert shell.wait(serve_rig.PATIENCE_S) == 130


def test_ctrl_c_without_a_terminal_interrupts_code_that_asks_for_a_line(gateway: serve_rig.Gateway) -> None:
    with piped_shell(gateway, "asks-for-a-line") as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write("print('asking'); input()\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == "asking\n"
        shell.send_signal(signal.SIGINT)
        assert any("KeyboardInterrupt" in line for line in shell.stdout)
        shell.stdin.write("print('it goes on')\n")
        shell.stdin.close()
        assert shell.stdout.read().endswith("it goes on\n")
        assert shell.wait(serve_rig.PATIENCE_S) == 0


def test_a_shell_without_a_terminal_runs_lines(gateway: serve_rig.Gateway) -> None:
    done = cellblock(gateway, "shell", "kept", "--keep", text="x = input()\nAda\nx\n1/0\nexit\nprint('not run')\n")
    assert done.stdout == "'Ada'\n"
    assert "ZeroDivisionError" in done.stderr
    assert as_json(run_code(gateway, "x", "--session", "kept", "--json"))["results"] == [{"text/plain": "'Ada'"}]
    cellblock(gateway, "sessions", "end", "kept")


def test_a_question_behind_the_end_of_the_input_is_interrupted(gateway: serve_rig.Gateway) -> None:
    done = cellblock(gateway, "shell", text="input()\n")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "KeyboardInterrupt" in done.stderr


def test_without_a_gateway_one_is_started_and_ended(tmp_path: Path) -> None:
    directory = Path(tempfile.mkdtemp(prefix="cb-"))
    copy_template_data_dir(directory / "d")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "run", "-", "--one-off"],
            env=serve_rig.environment(directory / "d"),
            cwd=tmp_path,
            input="open('made.txt', 'w').write('content')\nprint('alone')",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        shutil.rmtree(directory)
    assert (done.returncode, done.stdout) == (0, "alone\n"), done.stderr
    (made,) = tmp_path.glob("cellblock-*/made.txt")
    assert made.read_text() == "content"
