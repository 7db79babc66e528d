"""Notebooks run through the gateway by jupyter_server's own gateway code: in process under nbclient and papermill, and
as a server that has `--gateway-url`.

This gateway asks for no token: jupyter_server's GatewayKernelClient, which the first two use, opens its WebSocket
without one. The server itself does send it, as test_jupyter_lab.py shows.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
import pytest_asyncio
from client_rig import Launch
from jupyter_client_rig import FORGETFUL, NUMBERED, Jupyter, jupyter_server, numbers, only_these_kernels, visiting
from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.gateway.managers import GatewayKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from papermill.exceptions import PapermillExecutionError
from serve_rig import Gateway

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()"
PROGRESS = """
import time
from IPython.display import clear_output

handle = display("0 %", display_id=True)
for done in (50, 100):
    handle.update(f"{done} %")
for step in range(3):
    clear_output(wait=True)
    print("step", step)
"""
PNG_MAGIC = b"\x89PNG\r\n"

pytestmark = [pytest.mark.docker, FORGETFUL]


@pytest.fixture(scope="module")
def gateway(launch: Launch) -> Iterator[Gateway]:
    with launch(CELLBLOCK_AUTH_TOKENS="[]", CELLBLOCK_POOL_MAX="8") as gateway:
        yield gateway


@pytest.fixture
def gateway_client(gateway: Gateway) -> Iterator[None]:
    """What `--gateway-url` sets in a server."""
    GatewayClient.clear_instance()
    GatewayClient.instance().url = gateway.url
    with only_these_kernels(gateway):
        yield
    GatewayClient.clear_instance()


def notebook(*sources: str) -> Any:
    cells = [new_markdown_cell("# A notebook"), *(new_code_cell(source) for source in sources)]
    return new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    )


def code_cells(run: Any) -> list[Any]:
    return [cell for cell in run.cells if cell.cell_type == "code"]


async def run(nb: Any, **options: Any) -> list[Any]:
    """Run it with nbclient; its code cells."""
    return code_cells(await NotebookClient(nb, kernel_manager_class=GatewayKernelManager, **options).async_execute())


@pytest.mark.usefixtures("gateway_client")
async def test_nbclient_fills_in_every_kind_of_output() -> None:
    cells = await run(
        notebook("x = 20\nprint('out')\nx + 1", PLOT, PROGRESS, "import sys; print('err', file=sys.stderr)")
    )
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4]
    printed, value = cells[0].outputs
    assert (printed.output_type, printed.text) == ("stream", "out\n")
    assert (value.output_type, value.data["text/plain"]) == ("execute_result", "21")
    (plot,) = (output for output in cells[1].outputs if output.output_type == "display_data")
    assert base64.b64decode(plot.data["image/png"]).startswith(PNG_MAGIC)
    assert [output.text for output in cells[2].outputs] == ["step 2\n"]
    assert [(output.name, output.text) for output in cells[3].outputs] == [("stderr", "err\n")]


@pytest.mark.usefixtures("gateway_client")
async def test_nbclient_shows_what_a_later_cell_has_updated() -> None:
    cells = await run(notebook("handle = display('old', display_id=True)", "handle.update('new')"))
    assert [output.data["text/plain"] for output in cells[0].outputs] == ["'new'"]


@pytest.mark.usefixtures("gateway_client")
async def test_nbclient_stops_at_an_error_or_goes_on_where_that_is_allowed() -> None:
    sources = ("x = 1", "1/0", "print(x)")
    stopped = notebook(*sources)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        await run(stopped)
    assert [cell.execution_count for cell in code_cells(stopped)] == [1, 2, None]
    cells = await run(notebook(*sources), allow_errors=True)
    assert [output.output_type for output in cells[1].outputs] == ["error"]
    assert cells[1].outputs[0].ename == "ZeroDivisionError"
    assert cells[2].outputs[0].text == "1\n"


@pytest.mark.usefixtures("gateway_client")
async def test_nbclient_leaves_no_kernel_behind(gateway: Gateway) -> None:
    await run(notebook("1"))
    async with visiting(gateway) as jupyter:
        assert (await jupyter.http.get("/api/kernels")).json() == []


@pytest.mark.usefixtures("gateway_client")
def test_papermill_puts_parameters_in_and_stops_at_an_error(tmp_path: Path) -> None:
    nb = notebook("n = 1", "print(n * 2)")
    nb.cells[1].metadata["tags"] = ["parameters"]
    nbformat.write(nb, tmp_path / "in.ipynb")
    through = {"kernel_manager_class": GatewayKernelManager, "progress_bar": False}
    done = papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"n": 21}, **through)
    assert code_cells(done)[-1].outputs[0].text == "42\n"
    assert nbformat.read(tmp_path / "out.ipynb", 4).metadata.papermill.exception is None
    nbformat.write(notebook("print('before')", "1/0", "print('not reached')"), tmp_path / "in.ipynb")
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", **through)
    cells = code_cells(nbformat.read(tmp_path / "out.ipynb", 4))
    assert cells[-3].outputs[0].text == "before\n"
    assert cells[-1].outputs == []


@pytest_asyncio.fixture
async def server(gateway: Gateway, tmp_path: Path) -> AsyncIterator[Jupyter]:
    """A jupyter_server of its own, whose kernels are the gateway's."""
    with jupyter_server(gateway, tmp_path) as place, only_these_kernels(gateway):
        async with visiting(place) as server:
            yield server


async def test_a_jupyter_server_before_the_gateway_runs_a_notebook(server: Jupyter, gateway: Gateway) -> None:
    specs = (await server.http.get("/api/kernelspecs")).json()
    assert specs["default"] in specs["kernelspecs"]
    logos = specs["kernelspecs"][specs["default"]]["resources"].values()
    for logo in logos:
        assert (await server.http.get(logo)).status_code == 200
    asked = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "python3"}}
    made = await server.http.post("/api/sessions", json=asked)
    assert made.status_code == 201, made.text
    kernel_id = made.json()["kernel"]["id"]
    async with server.channels(kernel_id, v1=False) as channels:
        assert (await channels.run("x = 42\nprint(x)"))[1] == "42\n"
        asked_for = await channels.execute("name = input('name? ')\nprint(name)")
        request = await channels.until(lambda message: message.type == "input_request")
        answer = channels.message("input_reply", {"value": "Ada"}, channel="stdin", parent_header=request.header)
        await channels.send(answer)
        await channels.reply(asked_for)
        running = await channels.execute(NUMBERED.format(count=600, pause_s=0.1))
        await channels.until(lambda message: message.type == "stream")
        assert (await server.http.post(f"/api/kernels/{kernel_id}/interrupt")).status_code == 204
        assert (await channels.reply(running)).content["ename"] == "KeyboardInterrupt"
        assert (await channels.run("print(x, name)"))[1] == "42 Ada\n"
    async with visiting(gateway) as direct:
        model = (await direct.http.get(f"/api/kernels/{kernel_id}")).json()
        assert (model["name"], model["execution_state"]) == ("python3", "idle")
        restarted = await server.http.post(f"/api/kernels/{kernel_id}/restart")
        assert restarted.status_code == 200
        async with server.channels(kernel_id, v1=False) as channels:
            assert (await channels.run("print('x' in globals())"))[1] == "False\n"
        assert (await server.http.delete(f"/api/sessions/{made.json()['id']}")).status_code == 204
        await direct.until_gone(kernel_id)


async def test_two_tabs_of_a_jupyter_server_see_the_same_run(server: Jupyter) -> None:
    kernel_id = await server.start(name="python3")
    async with server.channels(kernel_id, v1=False) as first, server.channels(kernel_id, v1=False) as second:
        await second.reply(await second.send(second.message("kernel_info_request", {})))
        msg_id = await first.execute(NUMBERED.format(count=20, pause_s=0.02))
        await first.reply(msg_id)
        await second.until(lambda message: message.parent_id == msg_id and message.is_state("idle"))
        heard = [message for message in second.heard if message.parent_id == msg_id]
        text = "".join(message.content["text"] for message in heard if message.type == "stream")
        assert text == numbers(20)


@pytest.mark.usefixtures("gateway_client")
async def test_an_output_widget_captures_what_is_printed_in_it() -> None:
    nb = notebook(
        "import ipywidgets\nout = ipywidgets.Output()\nwith out: print('captured')\nprint('beside')",
        "slider = ipywidgets.IntSlider(value=1)\n"
        "interactive = ipywidgets.interactive(lambda x: print('x is', x), x=slider)\n"
        "display(interactive)",
    )
    client = NotebookClient(nb, kernel_manager_class=GatewayKernelManager)
    first, _ = code_cells(await client.async_execute())
    assert [output["text"] for output in first.outputs] == ["beside\n"]
    states = nb.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    outputs = [state["state"].get("outputs") for state in states if state["model_name"] == "OutputModel"]
    assert sorted(output[0]["text"] for output in outputs) == ["captured\n", "x is 1\n"]
