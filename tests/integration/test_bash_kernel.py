"""The Bash kernel under its supervisor: what the shell keeps, how texts end, interrupts, output, its own end."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from supervised import Run, Supervised, supervised

from gateway.supervisors import SupervisorSwitchboard

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kernel() -> AsyncIterator[Supervised]:
    """One kernel for most of the tests here: each must leave it usable, and none may end it."""
    root = Path(tempfile.mkdtemp(prefix="cb-"))
    async with supervised(root, SupervisorSwitchboard(root / "s"), kernel_name="bash") as supervisor:
        yield supervisor
        assert supervisor.deaths() == []
    shutil.rmtree(root)


@pytest_asyncio.fixture(loop_scope="module")
async def mortal(short_dir: Path, switchboard: SupervisorSwitchboard) -> AsyncIterator[Supervised]:
    async with supervised(short_dir, switchboard, kernel_name="bash") as supervisor:
        yield supervisor


def error(run: Run) -> tuple[str, str]:
    """The name and the value of a run's error; empty where it has none."""
    reply = run.reply()
    published = [frame.content for frame in run.frames if frame.msg_type == "error"]
    if reply["status"] == "ok":
        assert not published
        return "", ""
    assert [(content["ename"], content["evalue"]) for content in published] == [(reply["ename"], reply["evalue"])]
    return reply["ename"], reply["evalue"]


# --- what is kept -----------------------------------------------------------------------------------------------------


async def test_variables_functions_options_and_the_directory_are_kept(kernel: Supervised) -> None:
    await kernel.run('n=1; declare -A map=([a]=b); f() { echo "f$1 $n"; }; mkdir -p below; cd below; shopt -s extglob')
    run = await kernel.run('f 2; echo "${map[a]}"; pwd; touch x y; echo !(x); cd ..; n=2')
    assert run.text() == f"f2 1\nb\n{kernel.work_dir}/below\ny\n"
    assert (await kernel.run("f; cd - >/dev/null; pwd; cd ..; shopt -u extglob")).text().endswith(
        "f 2\n/below\n"
    ) is False
    assert (await kernel.run('echo "$n"; f')).text() == "2\nf 2\n"


async def test_stdout_and_stderr_come_apart_and_files_come_back(kernel: Supervised) -> None:
    run = await kernel.run("echo out; echo err >&2; echo text >made.txt; mkdir -p deep; printf '\\x89PNG' >deep/a.png")
    assert (run.text(), run.text("stderr"), error(run)) == ("out\n", "err\n", ("", ""))
    assert run.files() == {"made.txt": b"text\n", "deep/a.png": b"\x89PNG"}
    assert run.reply()["execution_count"] >= 1


async def test_what_a_run_redirects_and_traces_ends_with_it(kernel: Supervised) -> None:
    run = await kernel.run("exec >redirected.txt 2>&1; echo into the file; nothing_of_this_name")
    assert run.text() == run.text("stderr") == ""
    assert (
        run.files()["redirected.txt"] == b"into the file\n./main.sh: line 1: nothing_of_this_name: command not found\n"
    )
    run = await kernel.run("set -xv\necho traced")
    assert (run.text(), run.text("stderr")) == ("traced\n", "echo traced\n+++ echo traced\n")
    again = await kernel.run("echo still; set +xv")
    assert again.text("stderr").endswith("+++ echo still\n+++ set +xv\n")
    assert "cellblock" not in again.text("stderr")
    assert (await kernel.run("echo quiet")).text("stderr") == ""


async def test_a_script_finds_itself_where_it_runs(kernel: Supervised) -> None:
    code = 'set -u\ncd "$(dirname "${BASH_SOURCE[0]}")" && pwd\necho "$0 $LINENO"; set +u'
    assert (await kernel.run(code)).text() == f"{kernel.work_dir}\nbash 3\n"


async def test_a_directory_that_is_gone_is_said(kernel: Supervised) -> None:
    await kernel.run("mkdir gone; cd gone; rmdir ../gone")
    run = await kernel.run("pwd")
    assert (run.text(), "No such file" in run.text("stderr")) == (f"{kernel.work_dir}\n", True)
    assert (await kernel.run("pwd")).text("stderr") == ""


# --- how texts end ----------------------------------------------------------------------------------------------------

ENDS = {
    "success": ("true", ("", "")),
    "nothing": ("", ("", "")),
    "a comment": ("# nothing", ("", "")),
    "failure": ("false", ("ExitStatus", "1")),
    "failure before success": ("false; true", ("", "")),
    "any status": ("(exit 42)", ("ExitStatus", "42")),
    "a pipeline": ("false | true", ("", "")),
    "a pipeline that may not fail": ("set -o pipefail; false | true", ("ExitStatus", "1")),
    "no such command": ("nothing_of_this_name", ("ExitStatus", "127")),
    "return": ("return 5; echo no", ("ExitStatus", "5")),
    "return from a function": ("f() { return 6; }; f", ("ExitStatus", "6")),
    "a signal": ("sh -c 'kill -9 $$'", ("ExitStatus", "137")),
    "syntax": ("if then", ("ExitStatus", "2")),
    "an open quote": ("echo 'a", ("ExitStatus", "2")),
    "break": ("break", ("", "")),
    "an unset variable": ('echo "$nothing_of_this_name"', ("", "")),
    "an expansion that fails": ("echo ${nothing_of_this_name:?}", ("ExitStatus", "1")),
}


@pytest.mark.parametrize("how", [how for how in ENDS if how != "an expansion that fails"])
async def test_the_last_commands_status_is_the_runs(kernel: Supervised, how: str) -> None:
    code, expected = ENDS[how]
    run = await kernel.run(code)
    await kernel.run("set +o pipefail")
    assert error(run) == expected


async def test_the_status_is_there_for_the_next_run(kernel: Supervised) -> None:
    await kernel.run("(exit 7)")
    assert (await kernel.run("echo $?")).text() == "7\n"
    assert (await kernel.run("echo $?")).text() == "0\n"
    assert (await kernel.run("trap 'echo failed' ERR; false")).text() == "failed\n"
    await kernel.run("trap - ERR")


async def test_an_error_comes_after_all_output(kernel: Supervised) -> None:
    for _ in range(10):
        run = await kernel.run("echo out; echo err >&2; false")
        assert run.types().index("error") > max(n for n, kind in enumerate(run.types()) if kind == "stream")
        assert (run.text(), run.text("stderr")) == ("out\n", "err\n")


async def test_messages_name_the_line(kernel: Supervised) -> None:
    run = await kernel.run("echo\n\nnothing_of_this_name")
    assert run.text("stderr") == "./main.sh: line 3: nothing_of_this_name: command not found\n"
    assert run.reply()["traceback"] == [
        "ExitStatus: The last command ended with exit status 127 (a command was not found)."
    ]
    assert "line 2: syntax error" in (await kernel.run("echo\n)")).text("stderr")


async def test_here_documents_and_odd_texts_are_run_as_they_are(kernel: Supervised) -> None:
    code = "cat <<'E'\n$x `y` \\\nE\ncat <<<'it''s'\nprintf '%s|' \"a  b\" 'ü\U0001f600'"
    assert (await kernel.run(code)).text() == "$x `y` \\\nits\na  b|ü\U0001f600|"
    assert (await kernel.run("echo unterminated \\")).text() == "unterminated\n"
    assert (await kernel.run("# \ud800\necho lone")).text() == "lone\n"
    assert (await kernel.run(f": {'x' * 3_000_000}; echo long")).text() == "long\n"


# --- output -----------------------------------------------------------------------------------------------------------


async def test_output_comes_while_the_code_runs(kernel: Supervised) -> None:
    msg_id = kernel.send("echo first; until [ -e go ]; do sleep 0.05; done; echo last")
    await kernel.printed("first")
    (kernel.work_dir / "go").touch()
    assert (await kernel.end_of(msg_id)).text() == "first\nlast\n"


async def test_much_output_and_bytes_that_are_no_text(kernel: Supervised) -> None:
    run = await kernel.run("head -c 20000000 /dev/zero | tr '\\0' x; echo; echo end >&2")
    assert (len(run.text()), run.text("stderr")) == (20_000_001, "end\n")
    assert (
        await kernel.run("printf 'a\\xffb\\n'; printf '\\xe2\\x82'; sleep 0.2; printf '\\xac\\n'")
    ).text() == "a�b\n€\n"


async def test_what_runs_in_the_background_holds_nothing_up(kernel: Supervised) -> None:
    left = "(until [ -e late ]; do sleep 0.05; done; echo from behind) & late=$!; sleep 60 & other=$!; echo at once"
    assert (await kernel.run(left)).text() == "at once\n"
    ended = await kernel.run("touch late; wait $late; echo then; kill $other; wait $other; echo $?")
    assert ended.text() == "from behind\nthen\n143\n"


async def test_standard_input_is_at_its_end(kernel: Supervised) -> None:
    assert (await kernel.run('read line; echo $?; cat; echo "[$line]"')).text() == "1\n[]\n"
    assert (await kernel.run("printf 'a\\nb\\n' | while read line; do echo \"<$line>\"; done")).text() == "<a>\n<b>\n"


async def asking(kernel: Supervised, code: str) -> tuple[str, dict[str, Any]]:
    """Run code that asks; the run's msg_id, and the question."""
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": True}
    msg_id = kernel.send_message("shell", "execute_request", content)
    questions: list[Any] = []

    def has_come() -> bool:
        questions[:] = [f.content for f in kernel.frames if f.msg_type == "input_request" and f.parent_id == msg_id]
        return bool(questions)

    await kernel.until(has_come)
    return msg_id, dict(questions[0])


async def test_read_asks_a_client_that_can_be_asked(kernel: Supervised) -> None:
    msg_id, question = await asking(
        kernel, "read -rp 'Your name: ' name; echo \"<$name>\"; cat; read -s -p x pass <<<a; echo $pass"
    )
    assert question == {"prompt": "Your name: ", "password": False}
    kernel.send_message("stdin", "input_reply", {"value": "Ada \\ L."})
    assert (await kernel.end_of(msg_id)).text() == "<Ada \\ L.>\na\n"
    msg_id, question = await asking(
        kernel, 'f() { local word; read -s word; echo "[$word]"; }; f; echo a | while read x; do echo $x; done'
    )
    assert question == {"prompt": "", "password": True}
    kernel.send_message("stdin", "input_reply", {"value": "secret\nmore"})
    assert (await kernel.end_of(msg_id)).text() == "[secret]\na\n"
    msg_id, _ = await asking(kernel, "read first; echo $first")
    kernel.send_message("stdin", "input_reply", {"value": "once"})
    assert (await kernel.end_of(msg_id)).text() == "once\n"
    assert (await kernel.run("read line; echo $?")).text() == "1\n"


async def test_a_question_can_be_interrupted(kernel: Supervised) -> None:
    msg_id, _ = await asking(kernel, "while read line; do echo no; done; echo no")
    kernel.interrupt(msg_id, grace_s=60)
    run = await kernel.end_of(msg_id)
    assert (run.text(), error(run)) == ("", ("KeyboardInterrupt", ""))
    assert (await kernel.run("echo fine")).text() == "fine\n"


# --- variables and environment ----------------------------------------------------------------------------------------


async def test_variables_are_in_the_environment_and_stay(kernel: Supervised) -> None:
    values = {"NAME": 'it\'s "$x" `y`\n', "EMPTY": "", "LONG": "x" * 131_066}
    await kernel.run("", cellblock={"variables": values})
    run = await kernel.run(
        """python3 -c 'import json, os; print(json.dumps([os.environ[n] for n in ("NAME", "EMPTY")]))'"""
    )
    assert json.loads(run.text()) == [values["NAME"], ""]
    assert (
        await kernel.run('sh -c \'echo "${#LONG}"\'; echo "$NAME"; unset LONG')
    ).text() == f"131066\n{values['NAME']}\n"


async def test_a_value_is_text_whatever_the_code_has_made_of_the_name(kernel: Supervised) -> None:
    await kernel.run("declare -i n=1; declare -u up=A; many=(1 2); target=t; declare -n ref=target; readonly fixed=1")
    values = {"n": "a[$(touch evaluated)]", "up": "low", "many": "one", "ref": "r", "fixed": "2"}
    await kernel.run("", cellblock={"variables": values})
    run = await kernel.run('echo "$n $up ${many[*]} $ref $target $fixed"')
    assert run.text() == "a[$(touch evaluated)] low one r t 1\n"
    assert "The variable fixed could not be set: the code has made it read-only.\n" in run.text("stderr")
    assert not (Path(kernel.work_dir) / "evaluated").exists()
    assert (await kernel.run("true")).text("stderr") == ""


async def test_an_environment_puts_back_attributes_and_arrays(kernel: Supervised) -> None:
    await kernel.run("declare -i number=3; declare -A map=([a]=1 [b]=2); list=(1 2); readonly constant=1")
    env = {"number": "7x", "map": "m", "list": "l", "constant": "c"}
    run = await kernel.run(
        'echo "$number ${map[*]} ${list[*]} $constant"; env | grep -c "^list=l$"', cellblock={"env": env}
    )
    assert run.text() == "7x m l 1\n1\n"
    again = await kernel.run('number+=1; echo "$number ${map[a]} ${map[b]} ${list[*]} $constant"; env | grep -c ^list=')
    assert again.text() == "4 1 2 1 2 1\n0\n"


async def test_an_environment_is_for_one_run(kernel: Supervised) -> None:
    await kernel.run("export OLD=before; LOCAL=kept; unset FRESH")
    env = {"OLD": "it's now", "LOCAL": "now", "FRESH": "now"}
    shown = 'sh -c \'echo "$OLD|$LOCAL|$FRESH"\'; echo "${FRESH-unset}"'
    run = await kernel.run(f"{shown}; unset OLD; (exit 3)", cellblock={"env": env})
    assert (run.text(), error(run)) == ("it's now|now|now\nnow\n", ("ExitStatus", "3"))
    assert (await kernel.run(f"{shown}; echo $LOCAL")).text() == "before||\nunset\nkept\n"
    msg_id = kernel.send("echo begun; sleep 60", cellblock={"env": env})
    await kernel.printed("begun")
    kernel.interrupt(msg_id, grace_s=60)
    await kernel.end_of(msg_id)
    assert (await kernel.run(shown)).text() == "before||\nunset\n"


async def test_an_environment_is_gone_whatever_the_code_has_done_to_it(mortal: Supervised) -> None:
    await mortal.ready()
    look = "env | grep -c SECRET; set | grep -c 's[e]same'; cat \"$IPC\"/bash-*/* | grep -c 's[e]same'; true"
    for code in (
        "true",
        "unset SECRET",
        "declare -n SECRET=OTHER",
        "SECRET=a; export -n SECRET",
        "export SECRET=b",
        "exit",
    ):
        await mortal.run("", cellblock={"variables": {"IPC": str(mortal.ipc_dir)}})
        run = await mortal.run(f"echo $SECRET; {code}", cellblock={"env": {"SECRET": "sesame"}})
        assert run.text() == "sesame\n"
        if code == "exit":
            await mortal.ready(2)
        assert (await mortal.run(look)).text() == "0\n0\n0\n", code
    run = await mortal.run("readonly SECRET; echo $SECRET", cellblock={"env": {"SECRET": "sesame"}})
    assert run.text() == "sesame\n"
    await mortal.ready(3)
    assert (await mortal.run(look)).text() == "0\n0\n0\n"


async def test_completion_leaves_the_status_and_the_traps(kernel: Supervised) -> None:
    await kernel.run("trap 'echo mine' INT; (exit 7)")
    await asked(kernel, "complete", code="ec", cursor_pos=2)
    assert (await kernel.run("echo $?; trap -p INT; trap - INT")).text() == "7\ntrap -- 'echo mine' SIGINT\n"


# --- interrupts -------------------------------------------------------------------------------------------------------

ENDLESS = {
    "a command": "sleep 60",
    "a loop": "while :; do :; done",
    "a loop of commands": "while true; do sleep 0.05; done",
    "a function in a function": "g() { while :; do sleep 0.05; done; }; f() { g; echo no; }; f; echo no",
    "a pipeline": "yes | tr y n >/dev/null",
    "a subshell": "(while :; do :; done)",
    "a substitution": "x=$(sleep 60); echo no",
    "a condition": "if sleep 60; then echo no; fi",
    "wait": "sleep 60 & wait $!; echo no",
    "a here document": "cat - /dev/zero >/dev/null <<<x",
    "eval": "eval 'eval \"sleep 60; echo no\"; echo no'; echo no",
    "code after it": "sleep 60\necho no\ntouch no",
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_an_interrupt_ends_the_code_and_nothing_else(kernel: Supervised, what: str) -> None:
    await kernel.run("kept=1; sleep 300 & other=$!")
    msg_id = kernel.send(f"echo 'begun {what}'\n{ENDLESS[what]}\necho no")
    await kernel.printed(f"begun {what}")
    kernel.interrupt(msg_id, grace_s=60)
    run = await kernel.end_of(msg_id)
    assert (run.text(), error(run)) == (f"begun {what}\n", ("KeyboardInterrupt", ""))
    after = await kernel.run(
        'echo "$kept $-"; kill -0 $other && kill $other; shopt -q extdebug; echo $?; trap -p DEBUG'
    )
    assert after.text() == "1 hBs\n1\n"


async def test_an_interrupt_that_comes_at_once_is_not_lost(kernel: Supervised) -> None:
    for _ in range(20):
        msg_id = kernel.send("while :; do :; done")
        kernel.interrupt(msg_id, grace_s=60)
        assert error(await kernel.end_of(msg_id)) == ("KeyboardInterrupt", "")


async def test_a_trap_of_the_codes_own_has_the_interrupt(kernel: Supervised) -> None:
    msg_id = kernel.send(
        "trap 'echo caught; stop=1' INT; echo trapping; until [ \"$stop\" ]; do sleep 0.05; done; echo after"
    )
    await kernel.printed("trapping")
    kernel.interrupt(msg_id, grace_s=60)
    assert (await kernel.end_of(msg_id)).text() == "trapping\ncaught\nafter\n"
    assert "caught" in (await kernel.run("trap -p INT; trap - INT")).text()
    assert (await kernel.run("trap -p INT")).text() == "trap -- '__cellblock_interrupt' SIGINT\n"


# --- the end of the shell ---------------------------------------------------------------------------------------------

LEAVING = {
    "exit": ("echo bye; exit", ("", "")),
    "exit 3": ("echo bye; exit 3", ("ExitStatus", "3")),
    "a trap at the end": ("trap 'echo bye' EXIT; exit 4", ("ExitStatus", "4")),
    "set -e": ("set -e; echo bye; false; echo no", ("ExitStatus", "1")),
    "set -u": ('set -u; echo bye; echo "$nothing_of_this_name"; echo no', ("ExitStatus", "1")),
    "an expansion that fails": ("echo bye; echo ${nothing_of_this_name:?}; echo no", ("ExitStatus", "1")),
    "exec": ("exec echo bye", ("", "")),
    "exec of nothing": ("echo bye; exec nothing_of_this_name", ("ExitStatus", "127")),
    "something left": ("sleep 300 & echo bye; exit 3", ("ExitStatus", "3")),
}


async def test_a_shell_that_ends_is_followed_by_a_fresh_one(mortal: Supervised) -> None:
    await mortal.ready()
    for count, (code, expected) in enumerate(LEAVING.values(), 1):
        await mortal.run("kept=1")
        run = await mortal.run(code)
        assert (run.text(), error(run), run.end.msg_type) == ("bye\n", expected, "done")
        await mortal.ready(1 + count)
        assert (await mortal.run('echo "[$kept]"')).text() == "[]\n"
    deaths = [(death.content["cause"], death.content["msg_id"]) for death in mortal.deaths()]
    assert deaths == [("exited", None)] * len(LEAVING)


@pytest.mark.parametrize("code", ["kill -9 $$", "kill $$", "kill -SEGV $BASHPID"])
async def test_a_shell_that_is_killed_is_a_kernel_that_died(mortal: Supervised, code: str) -> None:
    await mortal.ready()
    run = await mortal.run(f"echo bye; {code}; sleep 60")
    assert (run.text(), run.end.content["cause"]) == ("bye\n", "signal")
    await mortal.ready(2)
    assert (await mortal.run("echo fresh")).text() == "fresh\n"


async def test_a_shell_that_dies_between_runs_is_told(mortal: Supervised) -> None:
    await mortal.ready()
    await mortal.run("(while [ ! -e now ]; do sleep 0.05; done; kill -9 $$) &")
    (mortal.work_dir / "now").touch()
    await mortal.until(lambda: bool(mortal.deaths()))
    await mortal.ready(2)
    assert (await mortal.run("echo fresh")).text() == "fresh\n"


async def test_code_that_ignores_the_interrupt_is_killed(mortal: Supervised) -> None:
    await mortal.ready()
    msg_id = mortal.send("trap '' INT; echo begun; while :; do sleep 0.05; done")
    await mortal.printed("begun")
    mortal.interrupt(msg_id, grace_s=0.5)
    assert (await mortal.end_of(msg_id)).end.content["cause"] == "interrupt_ignored"
    await mortal.ready(2)


async def test_without_bash_each_run_says_so(
    short_dir: Path, switchboard: SupervisorSwitchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    async with supervised(short_dir, switchboard, kernel_name="bash") as kernel:
        await kernel.ready()
        name, value = error(await kernel.run("echo a"))
    assert (name, "no bash here" in value) == ("BashNotFound", True)


async def test_bash_begins_as_bash_whoever_has_started_the_gateway(
    short_dir: Path, switchboard: SupervisorSwitchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_dir / "env.sh").write_text("echo no; set -e")
    monkeypatch.setenv("BASH_ENV", str(short_dir / "env.sh"))
    monkeypatch.setenv("SHELLOPTS", "xtrace")
    async with supervised(short_dir, switchboard, kernel_name="bash") as kernel:
        await kernel.ready()
        run = await kernel.run("echo $-")
        assert (run.text(), run.text("stderr")) == ("hBs\n", "")


# --- what front ends ask ----------------------------------------------------------------------------------------------


async def asked(kernel: Supervised, msg_type: str, **content: Any) -> dict[str, Any]:
    msg_id = kernel.send_message("shell", f"{msg_type}_request", content)
    answers: list[dict[str, Any]] = []

    def has_come() -> bool:
        answers[:] = [
            dict(f.content) for f in kernel.frames if f.parent_id == msg_id and f.msg_type == f"{msg_type}_reply"
        ]
        return bool(answers)

    await kernel.until(has_come)
    return answers[0]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("compl", {"completing"}),
        ("x=1; compl", {"completing"}),
        ("echo $comple", {"$completed"}),
        ("cat complete.", {"complete.txt"}),
        ("cat 'a' compl", {"complete.txt"}),
        ("unfindab", set()),
        ("echo ", set()),
    ],
)
async def test_completion(kernel: Supervised, code: str, expected: set[str]) -> None:
    await kernel.run("completing() { :; }; completed=1; touch complete.txt")
    reply = await asked(kernel, "complete", code=code, cursor_pos=len(code))
    assert {match for match in reply["matches"] if match.startswith(("completi", "$", "complete"))} - {
        "complete"
    } == expected
    assert code[reply["cursor_start"] : reply["cursor_end"]] == code.rpartition(" ")[2]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("echo", "complete"),
        ("for x in 1 2", "incomplete"),
        ("if true; then", "incomplete"),
        ("echo 'a", "incomplete"),
        ("cat <<E\na", "incomplete"),
        ("echo \\", "incomplete"),
        ("echo @(a|b)", "complete"),
        ("if then", "invalid"),
    ],
)
async def test_whether_a_text_is_complete(kernel: Supervised, code: str, status: str) -> None:
    assert (await asked(kernel, "is_complete", code=code))["status"] == status


async def test_the_kernel_says_what_it_is(kernel: Supervised) -> None:
    info = await asked(kernel, "kernel_info")
    assert (info["implementation"], info["language_info"]["file_extension"]) == ("bash", ".sh")


async def test_no_zombies_are_left(kernel: Supervised) -> None:
    await kernel.run("for n in {1..30}; do (sleep 0.01 & ) ; true & done; wait $!")
    await asyncio.sleep(0.2)
    assert (await kernel.run("ps -eo stat,ppid | awk -v p=$$ '$2 == p && /^Z/' | wc -l")).text().strip() == "0"


async def test_a_kernel_whose_files_cannot_be_written_says_so_and_ends(mortal: Supervised) -> None:
    await mortal.ready()
    await mortal.run("true")
    (shell,) = mortal.ipc_dir.glob("bash-*")
    (shell / "code.sh").unlink()
    (shell / "code.sh").mkdir()
    name, value = error(await mortal.run("echo no"))
    assert (name, "the code was not run" in value) == ("ShellLost", True)
    await mortal.ready(2)
    assert (await mortal.run("echo fresh")).text() == "fresh\n"
