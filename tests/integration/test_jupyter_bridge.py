"""What a Jupyter client sees of a kernel behind the bridge, over Jupyter's own client and real sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import zmq
from jupyter_client.connect import LocalPortCache, port_names
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.restarter import KernelRestarter
from jupyter_client.session import Session
from jupyter_core.utils import ensure_event_loop
from jupyter_rig import KERNEL, Jupyter, LastingJupyter, install, run, until

from gateway.local_jupyter import provisioner
from gateway.local_jupyter.provisioner import KernelNotStarted


def test_streams_results_errors_and_the_reply_come_as_from_any_kernel(lasting_jupyter: LastingJupyter) -> None:
    with lasting_jupyter.kernel() as (_, client):
        heard: list[tuple[str, Any]] = []
        reply = client.execute_interactive(
            "print('out')\n6 * 7", output_hook=lambda m: heard.append((m["msg_type"], m["content"])), timeout=30
        )
        assert reply["content"]["status"] == "ok"
        assert [kind for kind, _ in heard] == ["status", "execute_input", "stream", "execute_result", "status"]
        assert heard[3][1]["data"] == {"text/plain": "42"}
        content, _ = run(client, "1 / 0")
        assert (content["status"], content["ename"]) == ("error", "ZeroDivisionError")


def test_questions_that_are_no_runs_are_answered(lasting_jupyter: LastingJupyter) -> None:
    with lasting_jupyter.kernel() as (_, client):
        run(client, "wanted_name = 1")
        for asked, kind, check in (
            (client.complete("wanted_n"), "complete_reply", lambda c: "wanted_name" in c["matches"]),
            (client.inspect("len"), "inspect_reply", lambda c: c["found"]),
            (client.is_complete("for x in y:"), "is_complete_reply", lambda c: c["status"] == "incomplete"),
            (
                client.history(hist_access_type="tail", n=1),
                "history_reply",
                lambda c: "wanted_name" in str(c["history"]),
            ),
            (client.kernel_info(), "kernel_info_reply", lambda c: c["language_info"]["name"] == "python"),
            (client.comm_info(), "comm_info_reply", lambda c: c["comms"] == {}),
        ):
            reply = client.get_shell_msg(timeout=30)
            assert (reply["parent_header"]["msg_id"], reply["msg_type"]) == (asked, kind)
            assert check(reply["content"]), reply["content"]


def test_comms_pass_in_both_directions_with_their_buffers(lasting_jupyter: LastingJupyter) -> None:
    code = (
        "from comm import get_comm_manager\n"
        "def opened(comm, message):\n"
        "    @comm.on_msg\n"
        "    def heard(message):\n"
        "        comm.send({'heard': message['content']['data']}, buffers=[bytes(message['buffers'][0])[::-1]])\n"
        "get_comm_manager().register_target('echo', opened)"
    )
    with lasting_jupyter.kernel() as (_, client):
        assert run(client, code)[0]["status"] == "ok"
        for kind, content, buffers in (
            ("comm_open", {"comm_id": "c", "target_name": "echo", "data": {}}, []),
            ("comm_msg", {"comm_id": "c", "data": {"n": 1}}, [b"abc"]),
        ):
            client.session.send(client.shell_channel.socket, kind, content, buffers=buffers)
        while (message := client.get_iopub_msg(timeout=30))["msg_type"] != "comm_msg":
            pass
        assert message["content"]["data"] == {"heard": {"n": 1}}
        assert [bytes(buffer) for buffer in message["buffers"]] == [b"cba"]
        client.session.send(client.shell_channel.socket, "comm_close", {"comm_id": "c", "data": {}})
        assert run(client, "pass")[0]["status"] == "ok"


def test_input_is_asked_of_the_client_that_runs_the_code(lasting_jupyter: LastingJupyter) -> None:
    with lasting_jupyter.kernel() as (manager, client), lasting_jupyter.client(manager) as other:
        asked: list[str] = []

        def answer(message: dict[str, Any]) -> None:
            asked.append(message["content"]["prompt"])
            client.input("Ada")

        content, text = run(client, "print('Hello', input('Who? '))", allow_stdin=True, stdin_hook=answer)
        assert (content["status"], text, asked) == ("ok", "Hello Ada\n", ["Who? "])
        with pytest.raises(Empty):
            other.get_stdin_msg(timeout=0.2)


def test_two_clients_share_variables_and_output_and_each_has_its_own_replies(lasting_jupyter: LastingJupyter) -> None:
    with lasting_jupyter.kernel() as (manager, one), lasting_jupyter.client(manager) as two:
        run(one, "shared = 'yes'")
        while True:  # what has been published so far
            try:
                two.get_iopub_msg(timeout=0.5)
            except Empty:
                break
        assert run(one, "print(shared)")[1] == "yes\n"
        overheard = [two.get_iopub_msg(timeout=30)["msg_type"] for _ in range(4)]
        assert overheard == ["status", "execute_input", "stream", "status"]
        with pytest.raises(Empty):
            two.get_shell_msg(timeout=0.2)
        assert run(two, "print(shared)")[1] == "yes\n"


def test_a_message_that_is_signed_with_another_key_is_not_run(lasting_jupyter: LastingJupyter) -> None:
    with lasting_jupyter.kernel() as (manager, client):
        info = manager.get_connection_info()
        with zmq.Context() as context, context.socket(zmq.DEALER) as intruder:
            intruder.linger = 0
            intruder.connect(f"tcp://{info['ip']}:{info['shell_port']}")
            for key, expected in ((b"a guess", 0), (info["key"], zmq.POLLIN)):
                content = {"code": f"who = {key!r}", "silent": False, "user_expressions": {}, "allow_stdin": False}
                Session(key=key).send(intruder, "execute_request", content)
                assert intruder.poll(500 if not expected else 30_000) == expected
        assert run(client, "print(who)")[1] == f"{info['key']!r}\n"


def test_an_interrupt_is_a_keyboard_interrupt_and_the_variables_stay(lasting_jupyter: LastingJupyter) -> None:
    with lasting_jupyter.kernel() as (manager, client):

        def interrupt() -> None:
            manager.interrupt_kernel()
            ensure_event_loop().close()  # jupyter_client's own, of this thread

        run(client, "kept = 1")
        threading.Timer(0.5, interrupt).start()
        content, _ = run(client, "import time\nwhile True: time.sleep(0.05)")
        assert (content["status"], content["ename"]) == ("error", "KeyboardInterrupt")
        assert run(client, "print(kept)")[1] == "1\n"


def test_an_interrupt_by_message_is_answered_and_does_the_same(lasting_jupyter: LastingJupyter) -> None:
    with lasting_jupyter.kernel() as (_, client):
        running = client.execute("import time\nwhile True: time.sleep(0.05)")
        time.sleep(0.5)
        client.session.send(client.control_channel.socket, "interrupt_request", {})
        assert client.get_control_msg(timeout=30)["msg_type"] == "interrupt_reply"
        reply = client.get_shell_msg(timeout=30)
        assert (reply["parent_header"]["msg_id"], reply["content"]["ename"]) == (running, "KeyboardInterrupt")


def test_a_kernel_that_ignores_interrupts_is_not_killed_for_it_and_a_restart_ends_it(
    lasting_jupyter: LastingJupyter,
) -> None:
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('deaf', flush=True)\nwhile True: pass"
    with lasting_jupyter.kernel() as (manager, client):
        client.execute(deaf)
        while client.get_iopub_msg(timeout=30)["msg_type"] != "stream":
            pass
        manager.interrupt_kernel()
        time.sleep(1)
        assert manager.is_alive()
        manager.restart_kernel()
        client.wait_for_ready(timeout=30)
        assert run(client, "print('deaf' in globals())")[1] == "False\n"


@pytest.mark.parametrize("now", [False, True])
def test_a_restart_forgets_variables_and_keeps_files_and_clients(lasting_jupyter: LastingJupyter, *, now: bool) -> None:
    with lasting_jupyter.kernel() as (manager, client):
        (bridge,) = lasting_jupyter.bridges()
        run(client, "x = 1\nopen('kept', 'w').write('file')")
        manager.restart_kernel(now=now)
        client.wait_for_ready(timeout=30)
        assert run(client, "print('x' in globals(), open('kept').read())")[1] == "False file\n"
        assert lasting_jupyter.bridges() == [bridge]


def test_a_restart_on_other_ports_is_a_new_kernel_there(process_jupyter: Jupyter) -> None:
    with process_jupyter.kernel(cache_ports=False) as (manager, _):
        before = manager.get_connection_info()["shell_port"]
        manager.restart_kernel(now=True, newports=True)
        assert manager.get_connection_info()["shell_port"] != before
        with process_jupyter.client(manager) as client:
            assert run(client, "print(1)")[1] == "1\n"


def test_a_shutdown_request_is_answered_to_who_asked_and_told_to_all(process_jupyter: Jupyter) -> None:
    with process_jupyter.kernel() as (manager, client):
        client.shutdown()
        assert client.get_control_msg(timeout=30)["content"] == {"status": "ok", "restart": False}
        while client.get_iopub_msg(timeout=30)["msg_type"] != "shutdown_reply":
            pass
        until(lambda: not manager.is_alive())
        until(lambda: not process_jupyter.bridges())


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("import os; os._exit(3)", 3), ("import os; os.kill(os.getpid(), 11)", -11), ("get_ipython().ask_exit()", 0)],
)
def test_the_death_of_a_kernel_is_its_processs_end_after_its_last_words(
    process_jupyter: Jupyter, code: str, exit_code: int
) -> None:
    with process_jupyter.kernel() as (manager, client):
        client.execute(f"print('last words', end='')\n{code}")
        while (message := client.get_iopub_msg(timeout=30))["msg_type"] != "stream":
            pass
        assert message["content"]["text"] == "last words"
        until(lambda: not manager.is_alive())
        assert manager.provisioner is not None
        poll = manager.provisioner.poll()
        with pytest.raises(StopIteration) as result:
            poll.send(None)
        assert result.value.value == exit_code


def test_a_dead_kernel_is_brought_back_by_a_polite_restart_and_by_jupyters_restarter(process_jupyter: Jupyter) -> None:
    """The shutdown_request of the polite one finds nobody to end, and does not end the next kernel."""
    with process_jupyter.kernel() as (manager, client):
        for restart in (manager.restart_kernel, KernelRestarter(kernel_manager=manager).poll):
            client.execute("import os; os._exit(1)")
            until(lambda: not manager.is_alive())
            restart()
            assert manager.is_alive()
            client.wait_for_ready(timeout=30)
            assert run(client, "print('on')")[1] == "on\n"
            assert manager.is_alive()


@pytest.mark.usefixtures("process_jupyter")
async def test_an_async_manager_starts_restarts_and_ends_a_kernel() -> None:
    manager = AsyncKernelManager(kernel_name=KERNEL)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=30)
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=30)
        reply = await client.execute_interactive("1", output_hook=lambda _: None, timeout=30)
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        await manager.shutdown_kernel()
    assert not await manager.is_alive()


def test_the_same_manager_starts_another_kernel_after_a_shutdown(process_jupyter: Jupyter) -> None:
    with zmq.Context() as context:  # a manager's own ends with its first kernel
        manager = KernelManager(kernel_name=KERNEL, context=context)
        for _ in range(2):
            manager.start_kernel()
            try:
                with process_jupyter.client(manager) as client:
                    assert run(client, "print(1)")[1] == "1\n"
            finally:
                manager.shutdown_kernel()
            assert process_jupyter.bridges() == []


def test_sockets_in_files_serve_as_well_as_ports(process_jupyter: Jupyter) -> None:
    path = process_jupyter.temporary / "z"
    with process_jupyter.kernel(transport="ipc", ip=str(path)) as (_, client):
        assert run(client, "print(1)")[1] == "1\n"


def test_a_client_that_reads_nothing_delays_nobody_for_long(process_jupyter: Jupyter) -> None:
    with process_jupyter.kernel() as (manager, client):
        info = manager.get_connection_info()
        with zmq.Context() as context, context.socket(zmq.SUB) as lazy:
            lazy.linger, lazy.rcvhwm, lazy.rcvbuf = 0, 1, 4096
            lazy.subscribe(b"")
            lazy.connect(f"tcp://{info['ip']}:{info['iopub_port']}")
            assert lazy.poll(30_000)  # its welcome
            # More than fits into the queues and both socket buffers; and less, each, than the supervisor keeps.
            code = "for n in range(20):\n    print('x' * 1_000_000)\n    __import__('sys').stdout.flush()"
            for _ in range(12):
                content, text = run(client, code)
                assert content["status"] == "ok"
                assert text.count("x") == 20_000_000
            (bridge,) = process_jupyter.bridges()
            assert bridge.memory_info().rss < 220 << 20


def test_more_than_one_cell_may_say_is_cut_and_said_to_be(lasting_jupyter: LastingJupyter) -> None:
    with lasting_jupyter.kernel() as (_, client):
        _, text = run(client, "for n in range(100): print('x' * 1_000_000, flush=True)")
        received = text.count("x")
        dropped = sum(map(int, re.findall(r"Cellblock: (\d+) bytes of output were dropped", text)))
        assert received < 80_000_000
        assert received + dropped >= 100_000_000  # all of it is told before the cell ends
        assert run(client, "print('on')")[1] == "on\n"


def test_nonsense_of_a_kernels_is_kept_from_its_clients(lasting_jupyter: LastingJupyter) -> None:
    code = (
        "from ipykernel.kernelapp import IPKernelApp\n"
        "kernel = IPKernelApp.instance().kernel\n"
        "s, parent = kernel.session, kernel.get_parent()\n"
        "header = s.msg_header('display_data')\n"
        "def publish(header, parent, content):\n"
        "    import json\n"
        "    parts = [header, parent, {}, content]\n"
        "    parts = [part if isinstance(part, bytes) else json.dumps(part, default=str).encode() for part in parts]\n"
        "    kernel.iopub_socket.send_multipart([b'', b'<IDS|MSG>', s.sign(parts), *parts])\n"
        "for content in (b'[' * 100_000, b'[]', b'\\xff', b''):\n"
        "    publish(header, parent['header'], content)\n"
        "publish(b'null', b'null', {})\n"
        "publish({**header, 'msg_type': 7}, parent['header'], {})\n"
        "print('sent')"
    )
    with lasting_jupyter.kernel() as (_, client):
        heard: list[tuple[str, Any]] = []
        client.execute_interactive(
            code, output_hook=lambda m: heard.append((m["msg_type"], m["content"].get("text"))), timeout=30
        )
        assert ("stream", "sent\n") in heard
        assert "display_data" not in dict(heard)
        # Two of them may come in one message: output in small pieces is put together.
        assert sum(str(text).count("no message of Jupyter's") for _, text in heard) == 5
        assert run(client, "print('on')")[1] == "on\n"


def test_a_port_that_is_taken_is_said_when_the_kernel_is_started(process_jupyter: Jupyter) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        manager = KernelManager(kernel_name=KERNEL, cache_ports=False, shell_port=taken.getsockname()[1])
        with pytest.raises(KernelNotStarted, match="cannot listen at tcp://127"):
            manager.start_kernel()
        manager.cleanup_resources()
    assert process_jupyter.bridges() == []


def test_a_chosen_port_that_another_process_took_is_replaced(
    process_jupyter: Jupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = LocalPortCache.find_available_port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        chosen = [port]
        monkeypatch.setattr(
            LocalPortCache, "find_available_port", lambda cache, ip: chosen.pop() if chosen else find(cache, ip)
        )
        with process_jupyter.kernel() as (manager, client):
            assert chosen == []
            assert run(client, "print(1)")[1] == "1\n"
            ports = {manager.get_connection_info()[name] for name in port_names}
            assert port not in ports
            written = json.loads(Path(manager.connection_file).read_text())
            assert {written[name] for name in port_names} == ports
    assert process_jupyter.bridges() == []


def test_a_kernel_whose_ports_are_always_taken_is_not_started(
    process_jupyter: Jupyter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provisioner, "_PORT_ATTEMPTS", 2)
    asked = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(LocalPortCache, "find_available_port", lambda _cache, ip: asked.append(ip) or port)
        manager = KernelManager(kernel_name=KERNEL)
        with pytest.raises(KernelNotStarted, match="cannot listen at tcp://127"):
            manager.start_kernel()
        manager.cleanup_resources()
    assert len(asked) == 2 * len(port_names)
    assert process_jupyter.bridges() == []


def test_a_configuration_that_is_wrong_is_said_when_the_kernel_is_started(
    process_jupyter: Jupyter, tmp_path: Path
) -> None:
    (tmp_path / "cellblock.yaml").write_text("limits: {memory: much}\n")
    manager = KernelManager(kernel_name=KERNEL)
    with pytest.raises(KernelNotStarted, match=r'"limits.memory" must be a size'):
        manager.start_kernel()
    manager.cleanup_resources()
    assert process_jupyter.places() == []


def test_the_configuration_of_a_notebooks_directory_is_not_cellblocks(
    process_jupyter: Jupyter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "share" / "jupyter" / "kernels" / KERNEL / "kernel.json"
    content = json.loads(spec.read_text())
    del content["metadata"]["kernel_provisioner"]["config"]["config_file"]
    spec.write_text(json.dumps(content))
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    (notebooks / "config.yaml").write_text("model: {layers: 3}\n")
    (notebooks / "json.py").write_text("raise SystemExit('imported from the notebook directory')\n")
    monkeypatch.chdir(notebooks)
    monkeypatch.setenv("CELLBLOCK_ENGINE_NAME", "process")
    with process_jupyter.kernel() as (_, client):
        assert run(client, "print(1)")[1] == "1\n"


def test_a_kernelspec_is_of_a_language_of_the_configuration(process_jupyter: Jupyter, tmp_path: Path) -> None:
    config = {
        "engine": {"name": "process"},
        "build": {"dependencies": [], "preload": []},
        "languages": {"snake": "python3", "bash": "bash", "none": "gone"},
    }
    install(tmp_path, config, language="snake")
    install(tmp_path, config, language="bash")
    install(tmp_path, config, language="none")
    with process_jupyter.kernel(kernel_name="cellblock-snake") as (_, client):
        assert run(client, "print(1)")[1] == "1\n"
    with process_jupyter.kernel(kernel_name="cellblock-bash") as (_, client):
        reply, text = run(client, "echo 1; false")
        assert (reply["ename"], reply["evalue"], text) == ("ExitStatus", "1", "1\n")
    manager = KernelManager(kernel_name="cellblock-none")
    with pytest.raises(KernelNotStarted, match="does not start: No such kernel named gone"):
        manager.start_kernel()
    manager.cleanup_resources()


@pytest.mark.parametrize("forks", [False, True])
def test_a_client_that_is_killed_takes_its_kernel_along(process_jupyter: Jupyter, *, forks: bool) -> None:
    """Also where a process that it has forked holds the bridge's standard input open."""
    fork = "if os.fork() == 0: time.sleep(60)\n" if forks else ""
    program = (
        "import os, time\nfrom jupyter_client.manager import KernelManager\n"
        f"m = KernelManager(kernel_name='{KERNEL}')\nm.start_kernel()\n{fork}print('up', flush=True)\ntime.sleep(60)"
    )
    client = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, process_group=0)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        assert len(process_jupyter.bridges()) == 1
        client.kill()
        client.wait()
        until(lambda: not process_jupyter.bridges(), 10)
        until(lambda: not process_jupyter.places(), 10)
    finally:
        if forks:
            os.killpg(client.pid, signal.SIGKILL)
        assert client.stdout is not None
        client.stdout.close()


def test_what_a_killed_bridge_has_left_is_cleared_away_by_the_next(process_jupyter: Jupyter) -> None:
    with process_jupyter.kernel() as (manager, _):
        (left,) = process_jupyter.places()
        (bridge,) = process_jupyter.bridges()
        bridge.kill()
        until(lambda: not manager.is_alive())
        assert left.exists()
        with process_jupyter.kernel():
            until(lambda: not left.exists())
            assert len(process_jupyter.places()) == 1
