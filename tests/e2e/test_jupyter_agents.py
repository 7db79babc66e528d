"""What runs models' code by Jupyter: smolagents, AutoGen, its fork AG2, and Open WebUI.

The first three do so by their own client code, and would start a container with a Jupyter server of their own; here
each is pointed at the gateway. No model is asked: what a model would have them run is given.
"""

from __future__ import annotations

import asyncio
import base64
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from autogen_core import CancellationToken
from autogen_core.code_executor import CodeBlock
from client_rig import ALICE
from jupyter_client_rig import FORGETFUL, only_these_kernels
from serve_rig import Gateway
from smolagents import FinalAnswerTool
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import DockerExecutor, _create_kernel_http
from smolagents.utils import AgentError
from websockets.asyncio.client import connect

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of pydantic, whose older ways it keeps
    from autogen_ext.code_executors.docker_jupyter import DockerJupyterCodeExecutor
    from autogen_ext.code_executors.docker_jupyter._jupyter_server import JupyterConnectionInfo

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()"
PNG_MAGIC = b"\x89PNG\r\n"

pytestmark = [pytest.mark.docker, FORGETFUL]


@pytest.fixture(autouse=True)
def leaves_nothing(gateway: Gateway) -> Iterator[None]:
    with only_these_kernels(gateway):
        yield


# --- smolagents ------------------------------------------------------------------------------------------------------


class Smolagents(DockerExecutor):  # type: ignore[misc]
    """DockerExecutor after its constructor has done all but start a container; that part is copied from it."""

    def __init__(self, base_url: str, token: str) -> None:
        super(DockerExecutor, self).__init__([], AgentLogger(level=LogLevel.OFF))
        self.base_url = base_url
        self._wait_for_server(token)
        self.kernel_id = _create_kernel_http(f"{base_url}/api/kernels?token={token}", self.logger)
        ws_url = base_url.replace("http", "ws", 1)
        self.ws_url = f"{ws_url}/api/kernels/{self.kernel_id}/channels?token={token}"


@pytest.fixture
def smolagents(gateway: Gateway) -> Smolagents:
    return Smolagents(gateway.url, ALICE)


def test_smolagents_variables_live_from_step_to_step(smolagents: Smolagents) -> None:
    """Each step is a WebSocket of its own."""
    smolagents.send_variables({"numbers": [1, 2, 3], "when": None, "raw": b"\x00"})
    first = smolagents("total = sum(numbers)\nprint('counted')\ntotal")
    assert (first.output, first.logs, first.is_final_answer) == ("6", "counted\n", False)
    assert smolagents("print(total, when, raw)").logs == "6 None b'\\x00'\n"


def test_smolagents_tells_an_error_with_its_traceback(smolagents: Smolagents) -> None:
    with pytest.raises(AgentError, match="ZeroDivisionError"):
        smolagents.run_code_raise_errors("print('before')\n1/0")
    assert smolagents("1 + 1").output == "2"


def test_smolagents_final_answer_comes_back_as_the_value_it_is(smolagents: Smolagents) -> None:
    smolagents.send_tools({"final_answer": FinalAnswerTool()})
    answer = smolagents("final_answer({'sum': 6, 'parts': (1, 2, 3)})")
    assert (answer.output, answer.is_final_answer) == ({"sum": 6, "parts": (1, 2, 3)}, True)
    assert smolagents("2 + 2").is_final_answer is False


# --- AutoGen ---------------------------------------------------------------------------------------------------------


def address(gateway: Gateway) -> dict[str, Any]:
    parts = urlsplit(gateway.url)
    return {"host": parts.hostname, "use_https": False, "port": parts.port, "token": ALICE}


async def test_autogen_runs_blocks_in_one_kernel_and_saves_plots(gateway: Gateway, tmp_path: Path) -> None:
    connection = JupyterConnectionInfo(**address(gateway))
    async with DockerJupyterCodeExecutor(connection, timeout=60, output_dir=tmp_path) as executor:

        async def execute(*codes: str) -> Any:
            blocks = [CodeBlock(code=code, language="python") for code in codes]
            return await executor.execute_code_blocks(blocks, CancellationToken())

        counted = await execute("x = 41", "print(x + 1)\nx")
        assert (counted.exit_code, counted.output.split()) == (0, ["42", "41"])
        plotted = await execute(PLOT)
        assert plotted.exit_code == 0
        (picture,) = plotted.output_files
        assert picture.read_bytes().startswith(PNG_MAGIC)
        failed = await execute("print('before')", "1/0", "print('not reached')")
        assert failed.exit_code == 1
        assert "ZeroDivisionError" in failed.output
        assert "not reached" not in failed.output
        await executor.restart()
        assert (await execute("print('x' in globals())")).output.strip() == "False"


async def test_autogen_gives_up_on_code_that_takes_too_long(gateway: Gateway, tmp_path: Path) -> None:
    connection = JupyterConnectionInfo(**address(gateway))
    async with DockerJupyterCodeExecutor(connection, timeout=2, output_dir=tmp_path) as executor:
        late = await executor.execute_code_blocks(
            [CodeBlock(code="import time; time.sleep(30)", language="python")], CancellationToken()
        )
        assert (late.exit_code, "Timeout" in late.output) == (1, True)


# --- AG2 -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it asks jsonschema for a name that will go
def test_ag2_runs_blocks_in_one_kernel_and_saves_plots(gateway: Gateway, tmp_path: Path) -> None:
    from autogen.coding import CodeBlock, jupyter  # noqa: PLC0415 - it takes seconds, and each worker collects this

    connection = jupyter.JupyterConnectionInfo(**address(gateway))
    with jupyter.JupyterCodeExecutor(connection, output_dir=tmp_path) as executor:

        def execute(*codes: str) -> Any:
            return executor.execute_code_blocks([CodeBlock(code=code, language="python") for code in codes])

        counted = execute("x = 41", "print(x + 1)\nx")
        assert (counted.exit_code, counted.output.split()) == (0, ["42", "41"])
        plotted = execute(PLOT)
        (picture,) = plotted.output_files
        assert Path(picture).read_bytes().startswith(PNG_MAGIC)
        failed = execute("1/0")
        assert (failed.exit_code, "ZeroDivisionError" in failed.output) == (1, True)
        with executor._jupyter_kernel_client:  # which a restart leaves open
            executor.restart()
        with executor._jupyter_kernel_client, executor._jupyter_client._session:  # and the end does these
            assert execute("print('x' in globals())").output.strip() == "False"
            assert executor._kernel_id in [kernel["id"] for kernel in executor._jupyter_client.list_kernels()]


# --- Open WebUI ------------------------------------------------------------------------------------------------------


async def open_webui(gateway: Gateway, code: str) -> list[Any]:
    """What its client is sent: the token is in each address and no header has one, and a header has no date."""
    header = {"msg_id": "m", "msg_type": "execute_request", "username": "user", "session": "s", "date": ""}
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    message = {"header": {**header, "version": "5.3"}, "parent_header": {}, "metadata": {}, "content": content}
    answers: list[Any] = []
    async with httpx.AsyncClient(base_url=gateway.url, params={"token": ALICE}, timeout=60) as http:
        made = await http.post("/api/kernels")
        assert made.status_code == 201, made.text
        kernel = f"/api/kernels/{made.json()['id']}"
        url = f"{gateway.url.replace('http', 'ws', 1)}{kernel}/channels?token={ALICE}"
        async with connect(url) as ws, asyncio.timeout(60):
            await ws.send(json.dumps({**message, "channel": "shell"}))
            while not (answers and answers[-1]["content"].get("execution_state") == "idle"):
                answer = json.loads(await ws.recv())
                if answer["parent_header"].get("msg_id") == "m":
                    answers.append(answer)
        assert (await http.delete(kernel)).status_code == 204
    return answers


async def test_open_webui_runs_code_in_a_kernel_of_its_own(gateway: Gateway) -> None:
    answers = await open_webui(gateway, f"print('counted')\n{PLOT}\n6 * 7")
    shown = {answer["msg_type"]: answer["content"] for answer in answers}
    assert shown["stream"] == {"name": "stdout", "text": "counted\n"}
    assert base64.b64decode(shown["display_data"]["data"]["image/png"]).startswith(PNG_MAGIC)
    assert shown["execute_result"]["data"]["text/plain"] == "42"
    failed = await open_webui(gateway, "1/0")
    assert [answer["content"]["ename"] for answer in failed if answer["msg_type"] == "error"] == ["ZeroDivisionError"]
