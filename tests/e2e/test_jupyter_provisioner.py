"""Jupyter tools, unmodified, whose kernels are in containers: nbclient, papermill, Jupyter's own kernel tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jupyter_kernel_test
import nbformat
import pytest
from docker.api.client import APIClient
from jupyter_rig import KERNEL, PATIENCE_S, Jupyter, containers, run, until
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.docker


def notebook(*cells: str) -> Any:
    return new_notebook(cells=[new_code_cell(cell) for cell in cells])


def execute(book: Any, **options: Any) -> Any:
    return NotebookClient(book, kernel_name=KERNEL, timeout=60, **options).execute()


@pytest.mark.usefixtures("docker_jupyter")
def test_nbclient_executes_a_notebook_with_variables_a_plot_and_an_error() -> None:
    book = execute(
        notebook(
            "import os\nx = 20\nprint(os.getcwd(), os.getuid() > 1000)",
            "import matplotlib.pyplot as plt\nplt.plot([1, x])\nplt.show()",
            "{}['missing']",
            "x + 22",
        ),
        allow_errors=True,
    )
    printed, plot, error, result = [cell.outputs for cell in book.cells]
    assert printed[0].text == "/work True\n"
    assert plot[0].output_type == "display_data"
    assert plot[0].data["image/png"].startswith("iVBOR")
    assert (error[0].ename, error[0].evalue) == ("KeyError", "'missing'")
    assert result[0].data["text/plain"] == "42"


@pytest.mark.usefixtures("docker_jupyter")
def test_nbclient_stops_at_an_error_and_at_its_own_time_out() -> None:
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(notebook("1 / 0"))
    book = notebook("import time\ntime.sleep(600)", "print('on')")
    with pytest.raises(CellTimeoutError):
        NotebookClient(book, kernel_name=KERNEL, timeout=2).execute()
    book = notebook("import time\ntime.sleep(600)", "print('on')")
    NotebookClient(book, kernel_name=KERNEL, timeout=2, interrupt_on_timeout=True, allow_errors=True).execute()
    assert book.cells[0].outputs[0].ename == "KeyboardInterrupt"
    assert book.cells[1].outputs[0].text == "on\n"


@pytest.mark.usefixtures("docker_jupyter")
def test_a_kernel_that_dies_is_nbclients_dead_kernel_error() -> None:
    with pytest.raises(DeadKernelError):
        execute(notebook("import os\nos._exit(3)"))


def test_the_limits_of_the_configuration_hold_and_there_is_no_network(docker_jupyter: Jupyter) -> None:
    with docker_jupyter.kernel() as (manager, client):
        _, text = run(client, "import socket\nprint([name for _, name in socket.if_nameindex()])")
        assert text == "['lo']\n"
        client.execute("data = bytearray(700 << 20)\ndata[::4096] = b'x' * len(data[::4096])")
        while (message := client.get_iopub_msg(timeout=PATIENCE_S))["msg_type"] != "stream":
            pass
        assert "ran out of memory: `limits.memory` is 512 MiB" in message["content"]["text"]
        until(lambda: not manager.is_alive())
        manager.restart_kernel()
        client.wait_for_ready(timeout=PATIENCE_S)
        assert run(client, "print('on')")[1] == "on\n"


def test_a_restart_is_in_the_same_container_and_keeps_its_files(
    docker_jupyter: Jupyter, docker_client: APIClient
) -> None:
    with docker_jupyter.kernel() as (manager, client):
        (before,) = containers(docker_client, docker_jupyter.gateway_id())
        run(client, "x = 1\nopen('kept', 'w').write('file')")
        manager.restart_kernel()
        client.wait_for_ready(timeout=PATIENCE_S)
        assert run(client, "print('x' in globals(), open('kept').read())")[1] == "False file\n"
        (after,) = containers(docker_client, docker_jupyter.gateway_id())
        assert after["Id"] == before["Id"]


def test_a_container_that_is_removed_is_a_dead_kernel(docker_jupyter: Jupyter, docker_client: APIClient) -> None:
    with docker_jupyter.kernel() as (manager, _):
        (container,) = containers(docker_client, docker_jupyter.gateway_id())
        docker_client.remove_container(container["Id"], force=True)
        until(lambda: not manager.is_alive(), 10)
        manager.restart_kernel(now=True)
        with docker_jupyter.client(manager) as client:
            assert run(client, "print('anew')")[1] == "anew\n"


def test_the_container_of_a_client_that_is_killed_is_gone_within_seconds(
    docker_jupyter: Jupyter, docker_client: APIClient
) -> None:
    program = (
        "import time\nfrom jupyter_client.manager import KernelManager\n"
        f"m = KernelManager(kernel_name='{KERNEL}')\nm.start_kernel()\nprint('up', flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"up\n"
        gateway_id = docker_jupyter.gateway_id()
        assert len(containers(docker_client, gateway_id)) == 1
        client.kill()
    until(lambda: not containers(docker_client, gateway_id), 10)


def test_the_container_of_a_bridge_that_is_killed_ends_by_itself(
    docker_jupyter: Jupyter, docker_client: APIClient
) -> None:
    with docker_jupyter.kernel() as (manager, _):
        gateway_id = docker_jupyter.gateway_id()
        (left,) = docker_jupyter.places()
        (bridge,) = docker_jupyter.bridges()
        bridge.kill()
        until(lambda: not manager.is_alive())
        assert len(containers(docker_client, gateway_id)) == 1
        until(lambda: not containers(docker_client, gateway_id), 30)
        with docker_jupyter.kernel():
            until(lambda: not left.exists())


def test_papermill_runs_a_notebook_with_parameters(docker_jupyter: Jupyter, tmp_path: Path) -> None:
    cell = new_code_cell("who = 'nobody'", metadata={"tags": ["parameters"]})
    book = new_notebook(cells=[cell, new_code_cell("print('Hello,', who)")])
    book.metadata.kernelspec = {"name": KERNEL, "display_name": "", "language": "python"}
    nbformat.write(book, tmp_path / "in.ipynb")
    command = [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "-p", "who", "Ada", "--no-progress-bar"]
    done = subprocess.run(
        command, cwd=tmp_path, env=docker_jupyter.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.ipynb").read_text())["cells"][-1]["outputs"][0]["text"] == ["Hello, Ada\n"]


@pytest.mark.usefixtures("docker_kernel_of_class")
class TestAsJupyterItself(jupyter_kernel_test.KernelTests):  # type: ignore[misc]
    """Jupyter's tests of any kernel, which share one. It starts with the fixture: `setUpClass` comes too early."""

    kernel_name = KERNEL
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = ({"text": "zi", "matches": {"zip"}},)
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise ValueError"
    code_execute_result = (
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    )
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
    code_display_data = (
        {"code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))", "mime": "text/html"},
    )
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    @classmethod
    def setUpClass(cls) -> None: ...

    @classmethod
    def tearDownClass(cls) -> None: ...

    @classmethod
    def begin(cls) -> None:
        super().setUpClass()

    @classmethod
    def end(cls) -> None:
        super().tearDownClass()
