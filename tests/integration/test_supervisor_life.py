"""A real supervisor without a container: rejections, interrupts, restarts and its own end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest
from supervised import PATIENCE_S, Supervised, new_request, supervised

from gateway.supervisors import SupervisorSwitchboard
from sessions.provisioners.process.process_tree import end_all, processes_at_home

Launch = Callable[..., AbstractAsyncContextManager[Supervised]]


@pytest.fixture
def launch(short_dir: Path, switchboard: SupervisorSwitchboard) -> Launch:
    return lambda **settings: supervised(short_dir, switchboard, **settings)


@pytest.fixture
async def kernel(launch: Launch) -> AsyncIterator[Supervised]:
    async with launch() as kernel:
        yield kernel


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(*pids: int) -> None:
    async with asyncio.timeout(10):
        while any(map(alive, pids)):
            await asyncio.sleep(0.01)


async def test_output_and_its_end_arrive_in_order(kernel: Supervised) -> None:
    run = await kernel.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    assert (run.text("stdout"), run.text("stderr"), run.value()) == ("out\n", "err\n", "42")
    published = [frame.msg_type for frame in run.frames if frame.channel == "iopub"]
    assert published[:2] == ["status", "execute_input"]
    assert published[-1] == "status"
    assert run.end.msg_type == "done"
    usage = run.end.content["usage"]
    assert usage["wall_ms"] > 0
    assert usage["memory_peak_bytes"] > 10 << 20
    assert usage["oom_kills"] == 0


async def test_an_error_has_its_true_line_and_the_kernel_lives_on(kernel: Supervised) -> None:
    run = await kernel.run("x = 1\n\n1 / 0")
    assert run.reply()["ename"] == "ZeroDivisionError"
    assert "line 3" in "\n".join(run.reply()["traceback"])
    assert (await kernel.run("x")).value() == "1"


async def test_a_run_that_ended_before_the_kernel_died_has_ended_well(kernel: Supervised) -> None:
    kernel.acknowledges = False  # so that the files of the first run are still waiting for room when the kernel dies
    code = "import threading, os\nfor i in range(4): open(f'f{i}', 'wb').write(os.urandom(9 << 20))\n"
    run = await kernel.run("pass")
    msg_id = kernel.send(code + "threading.Timer(0.5, os._exit, [0]).start()")
    await kernel.until(lambda: any(f.msg_type == "artifact" and f.parent_id == msg_id for f in kernel.frames))
    await asyncio.sleep(1.0)
    assert not kernel.deaths()
    kernel.acknowledges = True
    kernel.acknowledge(len(kernel.frames))
    run = await kernel.end_of(msg_id)
    assert run.end.msg_type == "done"
    assert {name: len(data) for name, data in run.files().items()} == {f"f{i}": 9 << 20 for i in range(4)}
    await kernel.until(lambda: bool(kernel.deaths()))
    assert kernel.deaths()[0].content["msg_id"] is None


async def test_requests_behind_the_one_that_crashed_were_never_run(kernel: Supervised) -> None:
    crash = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\nos._exit(1)"
    first, second = kernel.send(crash), kernel.send("print('no')")
    async with asyncio.timeout(PATIENCE_S):
        while kernel.log().count("request_accepted") < 2:
            await asyncio.sleep(0.02)
    (kernel.work_dir / "go").touch()
    run = await kernel.end_of(second)
    assert run.types() == ["died"]
    assert run.end.content["msg_id"] == first
    assert run.end.content["never_run"] == [second]


async def test_a_request_that_no_kernel_takes_is_rejected_and_never_run(kernel: Supervised) -> None:
    msg_id, frame = new_request("open('ran', 'w')")
    kernel.control("restart")
    kernel.send_frame(frame)
    run = await kernel.end_of(msg_id)
    assert run.types() == ["rejected"]
    await kernel.ready(generation=2)
    assert kernel.deaths()[0].content["never_run"] == []
    kernel.send_frame(frame)
    assert (await kernel.run("import os; os.path.exists('ran')")).value() == "False"
    assert [frame.content for frame in kernel.frames if frame.msg_type == "rejected"] == [{"msg_id": msg_id}]
    await kernel.reconnect()
    assert msg_id not in kernel.hellos[-1]["finished"]


async def test_a_request_for_a_kernel_that_has_been_replaced_is_rejected(kernel: Supervised) -> None:
    kernel.control("restart")
    await kernel.ready(generation=2)
    first, second = (state.content["generation"] for state in kernel.states("idle"))
    assert (await kernel.run("1", cellblock={"generation": first})).types() == ["rejected"]
    assert (await kernel.run("1", cellblock={"generation": second})).value() == "1"


async def test_that_no_requests_are_taken_is_said_before_the_first_is_rejected(kernel: Supervised) -> None:
    await kernel.run("get_ipython().ask_exit()")
    assert (await kernel.run("1")).types() == ["rejected"]
    said = [frame for frame in kernel.frames if frame.msg_type in ("state", "rejected")]
    rejected_at = next(index for index, frame in enumerate(said) if frame.msg_type == "rejected")
    assert said[rejected_at - 1].content["state"] == "starting"


async def test_a_request_before_the_first_kernel_is_ready_is_rejected(launch: Launch) -> None:
    async with launch(waits=False) as kernel:
        await kernel.until(lambda: kernel.link is not None)
        assert (await kernel.run("1")).types() == ["rejected"]
        await kernel.ready()
        assert (await kernel.run("1")).value() == "1"


async def test_a_request_to_a_kernel_that_does_not_start_is_rejected(launch: Launch) -> None:
    async with launch(kernel_name="no-such-kernel", waits=False) as kernel:
        await kernel.until(lambda: bool(kernel.states("dead")))
        assert "no-such-kernel" in kernel.states("dead")[0].content["reason"]
        assert (await kernel.run("1")).types() == ["rejected"]


async def test_a_kernel_without_its_program_says_what_to_install(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernels" / "none").mkdir(parents=True)
    spec = {"argv": ["no-such-program", "{connection_file}"], "display_name": "None", "language": "none"}
    (tmp_path / "kernels" / "none" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    async with launch(kernel_name="none", waits=False) as kernel:
        await kernel.until(lambda: bool(kernel.states("dead")))
        assert "no program `no-such-program`: install it" in kernel.states("dead")[0].content["reason"]


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def test_a_request_to_a_kernel_that_has_just_been_killed_is_rejected(kernel: Supervised) -> None:
    pid: Any = kernel.states("idle")[-1].content["pid"]
    await asyncio.to_thread(os.kill, kernel.process.pid, signal.SIGSTOP)  # so that it does not see the end yet
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    while threads_of(pid) > 1:  # they end one by one, and the process with the last
        await asyncio.sleep(0.01)
    msg_id = kernel.send("1")
    os.kill(kernel.process.pid, signal.SIGCONT)
    assert (await kernel.end_of(msg_id)).types() == ["rejected"]
    await kernel.until(lambda: bool(kernel.deaths()))
    assert kernel.deaths()[0].content["msg_id"] is None


async def test_a_greeting_tells_what_is_outstanding_in_order_and_of_which_kernel(kernel: Supervised) -> None:
    first, second = kernel.send("import time; time.sleep(2)"), kernel.send("import os; os._exit(1)")
    await kernel.until(lambda: kernel.frames[-1].parent_id == first)
    await asyncio.sleep(0.3)  # for the second to be read: what is lost with a link is the gateway's to send again
    await kernel.reconnect()
    hello = kernel.hellos[-1]
    assert (hello["outstanding"], hello["protocol"]) == ([first, second], 2)
    generation = hello["generation"]
    await kernel.ready(generation=2)
    assert [state.content["generation"] for state in kernel.states("idle")] == [generation, generation + 1]
    await kernel.reconnect()
    hello = kernel.hellos[-1]
    assert (hello["outstanding"], hello["finished"], hello["generation"]) == ([], [first, second], generation + 1)


async def test_requests_resent_after_a_broken_link_run_once(kernel: Supervised) -> None:
    await kernel.run("count = 0")
    sent = [new_request("count += 1") for _ in range(50)]
    for number, (_, frame) in enumerate(sent):
        kernel.send_frame(frame)
        if number == 25:
            await kernel.reconnect()
            known = {*kernel.hellos[-1]["outstanding"], *kernel.hellos[-1]["finished"]}
            for again_id, again in sent[: number + 1]:
                if again_id not in known:
                    kernel.send_frame(again)
    for msg_id, _ in sent:
        await kernel.end_of(msg_id)
    assert (await kernel.run("count")).value() == "50"


async def test_an_interrupt_that_is_obeyed_leaves_the_variables(kernel: Supervised) -> None:
    msg_id = kernel.send("x = 1\nimport time\nprint('begun', flush=True)\ntime.sleep(60)")
    await kernel.printed("begun")
    kernel.interrupt(msg_id)
    run = await kernel.end_of(msg_id)
    assert (run.end.msg_type, run.reply()["ename"]) == ("done", "KeyboardInterrupt")
    assert (await kernel.run("x")).value() == "1"


async def test_an_interrupt_ends_the_child_process_that_the_code_waits_for(kernel: Supervised) -> None:
    msg_id = kernel.send("import subprocess\nsubprocess.run(['sh', '-c', 'echo begun; exec sleep 60'])")
    await kernel.printed("begun")
    kernel.interrupt(msg_id)
    assert (await kernel.end_of(msg_id)).reply()["ename"] == "KeyboardInterrupt"
    assert (await kernel.run("import psutil; [p.name() for p in psutil.Process().children()]")).value() == "[]"


async def test_code_that_ignores_an_interrupt_is_killed_and_the_kernel_forked_anew(kernel: Supervised) -> None:
    # The interrupt may come before the first print has returned.
    ignoring = (
        "import time\nsaid = 'begun'\nwhile True:\n try:\n  print(said, flush=True)\n  time.sleep(60)\n"
        " except: said = 'no'"
    )
    msg_id = kernel.send(ignoring)
    await kernel.printed("begun")
    kernel.interrupt(msg_id, grace_s=2.0)
    run = await kernel.end_of(msg_id)
    assert run.text() == "begun\nno\n"
    assert (run.end.msg_type, run.end.content["cause"]) == ("died", "interrupt_ignored")
    await kernel.ready(generation=2)
    assert (await kernel.run("'time' in dir()")).value() == "False"


async def test_code_that_turns_all_signals_off_is_killed_too(kernel: Supervised) -> None:
    code = (
        "import signal\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\nprint('begun', flush=True)\nwhile 1: pass"
    )
    msg_id = kernel.send(code)
    await kernel.printed("begun")
    kernel.interrupt(msg_id, grace_s=0.3)
    assert (await kernel.end_of(msg_id)).end.content["cause"] == "interrupt_ignored"


async def test_an_interrupt_of_a_run_that_is_over_harms_nobody(kernel: Supervised) -> None:
    run = await kernel.run("x = 1")
    kernel.interrupt(run.msg_id, grace_s=0.0)
    assert (await kernel.run("import time; time.sleep(0.3); x")).value() == "1"
    assert not kernel.deaths()


async def test_a_restart_gives_a_new_kernel(kernel: Supervised) -> None:
    await kernel.run("x = 1")
    kernel.control("restart")
    await kernel.ready(generation=2)
    assert kernel.deaths()[0].content["cause"] == "restart"
    assert (await kernel.run("'x' in dir()")).value() == "False"


async def test_what_a_dead_kernel_leaves_running_is_ended(kernel: Supervised) -> None:
    code = (
        "import subprocess, os, json\n"
        "one = subprocess.Popen(['sleep', '600']).pid\n"
        "two = subprocess.Popen(['sleep', '600'], start_new_session=True).pid\n"
        "print(json.dumps([one, two]), flush=True)\nos._exit(0)"
    )
    run = await kernel.run(code)
    await gone(*json.loads(run.text()))
    await kernel.ready(generation=2)


_FLOODER = """
import os, socket, time
if os.fork() == 0:
    os.setsid()
    sockets = []
    for descriptor in range(3, 200):
        try:
            one = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
        if one.family == socket.AF_UNIX and not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            one.setblocking(False)
            sockets.append(one)
    data = {one: b"" for one in sockets}
    while True:
        for one in sockets:
            try:
                data[one] = data[one] or bytes([0, 1, 120]) * 20000
                data[one] = data[one][one.send(data[one]):]
            except OSError:
                pass
        time.sleep(0)
time.sleep(0.5)
os._exit(3)
"""


async def test_a_child_that_floods_the_dead_kernels_sockets_does_not_keep_its_death_from_being_told(
    kernel: Supervised,
) -> None:
    run = await asyncio.wait_for(kernel.run(_FLOODER), 8)
    assert (run.end.msg_type, run.end.content["cause"], run.end.content["exit_code"]) == ("died", "exited", 3)
    await kernel.ready(2)
    assert (await kernel.run("print('next')")).text() == "next\n"


async def test_what_code_leaves_running_is_told_between_the_runs(kernel: Supervised) -> None:
    code = """
import subprocess, sys
burn = "import time; end = time.process_time() + 1.5\\nwhile time.process_time() < end: pass"
subprocess.Popen([sys.executable, "-c", burn], start_new_session=True)
"""
    await kernel.run(code)

    def told_ms() -> float:
        told = [frame.content for frame in kernel.frames if frame.msg_type == "usage" and not frame.content["msg_id"]]
        return sum(float(content["usage"]["cpu_ms"]) for content in told)

    await kernel.until(lambda: told_ms() > 300)
    used_ms = (await kernel.run("print(1)")).end.content["usage"]["cpu_ms"]
    await kernel.until(lambda: told_ms() + used_ms > 1200)
    before = told_ms()
    await kernel.run("import time; end = time.process_time() + 1.5\nwhile time.process_time() < end: pass")
    assert told_ms() < before + 1200


@pytest.mark.parametrize("is_forked", [False, True])
async def test_a_killed_fork_server_is_replaced_when_it_is_needed(launch: Launch, *, is_forked: bool) -> None:
    async with launch(is_forked=is_forked) as kernel:
        children = {process.pid for process in psutil.Process(kernel.process.pid).children()}
        (server,) = children - {kernel.states("idle")[-1].content["pid"]}
        os.kill(server, signal.SIGKILL)
        assert (await kernel.run("1 + 1")).value() == "2"
        kernel.control("restart")
        await kernel.ready(generation=2)
        assert (await kernel.run("1 + 1")).value() == "2"


@pytest.mark.parametrize(
    "obstacle",
    [
        "for n in range(2, 9): os.mkfifo(f'{ipc}/k{n}.json')",
        "os.unlink(f'{ipc}/ring'); os.mkfifo(f'{ipc}/ring')",
        "os.truncate(f'{ipc}/ring', 1)",
        "shutil.rmtree(os.getcwd())",
        "os.unlink(f'{ipc}/ring'); os.symlink('/dev/full', f'{ipc}/ring')",
    ],
)
async def test_what_a_kernel_puts_in_the_way_does_not_stop_the_next_one(kernel: Supervised, obstacle: str) -> None:
    ipc = f"import os, shutil\nipc = {str(kernel.ipc_dir)!r}\n"
    run = await kernel.run(f"{ipc}{obstacle}\nos._exit(3)")
    assert run.end.content["exit_code"] == 3
    await kernel.ready(generation=2)
    assert (await kernel.run("open('f', 'w').write('ok')")).files() == {"f": b"ok"}


async def test_messages_that_no_kernel_would_send_do_not_stop_the_relay(kernel: Supervised) -> None:
    code = """
kernel = get_ipython().kernel
session, socket = kernel.session, kernel.iopub_socket
parent = kernel.get_parent("shell")
def send(header={}, parent=parent["header"], metadata={}, content={}, buffers=()):
    message = session.msg("stream", {"name": "stdout", "text": "x"}, parent=parent)
    message["header"] |= header
    message["parent_header"] = parent
    message["metadata"] = metadata
    message["content"] |= content
    session.send(socket, message, buffers=list(buffers))
send(header={"msg_type": ["a"]})
send(header={"msg_type": {"a": 1}})
send(parent={"msg_id": ["a"]})
send(parent={"msg_id": {"a": 1}})
send(metadata={"cellblock_sent": ["stdout", 1e400]})
send(metadata={"cellblock_sent": ["stdout", -1]})
send(metadata={"cellblock_sent": [["stdout"], 1]})
send(metadata={"cellblock_sent": 7})
send(buffers=[b"x"] * 100)
print("still here", flush=True)
import os; os._exit(1)
"""
    run = await kernel.run(code)
    assert "still here\n" in run.text()
    assert run.end.content["exit_code"] == 1
    await kernel.ready(generation=2)


async def test_without_a_gateway_it_ends_itself_and_every_descendant(launch: Launch) -> None:
    async with launch(orphan_timeout_s=0.5) as kernel:
        code = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True).pid"
        run = await kernel.run(code)
        descendants = [p.pid for p in psutil.Process(kernel.process.pid).children(recursive=True)]
        assert int(run.value()) in descendants
        kernel.welcomes = False
        assert kernel.link is not None
        kernel.link.close("gone for good")
        assert await kernel.ended() == 0
        await gone(*descendants)


async def test_while_the_gateway_is_there_it_never_ends_itself(launch: Launch) -> None:
    async with launch(orphan_timeout_s=0.2) as kernel:
        assert (await kernel.run("import time; time.sleep(0.6); 1")).value() == "1"


@pytest.mark.parametrize("how", ["shutdown", "SIGTERM"])
async def test_told_to_end_it_ends_with_everything(kernel: Supervised, how: str) -> None:
    kernel.send("import subprocess; subprocess.Popen(['sleep', '600'])\nwhile True: pass")
    await kernel.until(lambda: any(frame.msg_type == "execute_input" for frame in kernel.frames))
    descendants = [p.pid for p in psutil.Process(kernel.process.pid).children(recursive=True)]
    assert len(descendants) >= 2
    started = time.monotonic()
    if how == "shutdown":
        kernel.control("shutdown")
    else:
        kernel.process.send_signal(signal.SIGTERM)
    assert await kernel.ended() == 0
    assert time.monotonic() - started < 5
    await gone(*descendants)


async def test_killed_itself_it_takes_the_kernel_along(kernel: Supervised) -> None:
    pid: Any = kernel.states("idle")[-1].content["pid"]
    assert alive(pid)
    os.kill(kernel.process.pid, signal.SIGKILL)
    await gone(pid)


async def test_processes_that_outlive_it_are_known_by_their_home(kernel: Supervised) -> None:
    code = "import os, time\npid = os.fork()\nif not pid:\n    os.setsid()\n    time.sleep(600)\npid"
    orphan = int((await kernel.run(code)).value())
    kernel.process.kill()
    await kernel.ended()
    assert [process.pid for process in processes_at_home(kernel.home_dir)] == [orphan]
    end_all([psutil.Process(orphan)])


async def test_a_kernel_has_nothing_of_the_home_where_its_modules_were_imported(kernel: Supervised) -> None:
    code = """
        import os, site, sys, sysconfig
        values = [(name, value) for name, module in [*sys.modules.items()] for value in vars(module).values()]
        values += [(name, item) for name, value in values if type(value) is dict for item in [*value.values()]]
        print([name for name, value in values if isinstance(value, str) and "/000" in value and name != "__main__"])
        print(site.getusersitepackages(), sysconfig.get_path("scripts", "posix_user"), os.path.expanduser("~"))
    """
    found, *paths = (await kernel.run(dedent(code))).text().split()
    assert found == "[]"
    assert all(path.startswith(str(kernel.home_dir)) for path in paths), paths


# The pattern is no text that it finds.
SEARCH = """
import re
found = 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        place, rights, *_ = line.split()
        if rights.startswith("rw") and "[v" not in line:
            start, end = (int(number, 16) for number in place.split("-"))
            memory.seek(start)
            found += len(re.findall(b"(?:the|my) credentia[l](?!s)", memory.read(end - start)))
found
"""


@pytest.mark.parametrize("is_forked", [False, True])
async def test_its_credential_is_not_in_its_environment_or_the_kernels(launch: Launch, *, is_forked: bool) -> None:
    async with launch(is_forked=is_forked) as kernel:
        with open(f"/proc/{kernel.process.pid}/environ", "rb") as file:  # noqa: ASYNC230, PTH123 - /proc never blocks
            environ = file.read()
        assert b"the credential" not in environ
        assert (b"CELLBLOCK_SUPERVISOR=xxxx" in environ) != is_forked
        assert (await kernel.run("import os; 'CELLBLOCK_SUPERVISOR' in os.environ")).value() == "False"
        assert (await kernel.run(SEARCH)).value() == "0"
        assert (await kernel.run("known = b' credential'.join([b'my', b''])\n" + SEARCH)).value() != "0"


async def test_a_kernel_that_never_comes_up_is_given_up_and_said_so(launch: Launch) -> None:
    async with launch(kernel_name="no-such-kernel", waits=False) as kernel:
        await kernel.until(lambda: bool(kernel.states("dead")))
        assert not kernel.states("idle")
