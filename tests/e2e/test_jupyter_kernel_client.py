"""jupyter-kernel-client, the library: sandboxes of its own, and the session that an agent is using."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import jupyter_mimetypes
import pytest
from client_rig import ALICE, Client, Json
from jupyter_client_rig import FORGETFUL, IN_BINARY, NUMBERED, only_these_kernels
from jupyter_kernel_client import JupyterKernelClient
from requests.exceptions import HTTPError
from serve_rig import Gateway

pytestmark = [pytest.mark.docker, FORGETFUL]

PROTOCOLS = pytest.mark.parametrize("protocol", [{}, IN_BINARY], ids=["legacy", "v1"])


@pytest.fixture(autouse=True)
def leaves_nothing(gateway: Gateway) -> Iterator[None]:
    with only_these_kernels(gateway):
        yield


@contextmanager
def kernel_at(gateway: Gateway, **options: Any) -> Iterator[JupyterKernelClient]:
    """A client that is connected: to a kernel of its own, or to that of `kernel_id`."""
    kernel = JupyterKernelClient(server_url=gateway.url, token=ALICE, **options)
    kernel.start(timeout=60)
    try:
        yield kernel
    finally:
        hurry(kernel)
        kernel.stop()


def hurry(kernel: JupyterKernelClient) -> None:
    """Its reader looks only every ten seconds whether the connection was closed; nobody need wait for that."""
    if kernel.has_kernel:
        kernel._manager.client.timeout = 0.1


def text_of(reply: dict[str, Any]) -> str:
    return "".join(output["text"] for output in reply["outputs"] if output["output_type"] == "stream")


def status_of(gateway: Gateway, kernel_id: str | None) -> int:
    headers = {"Authorization": f"Bearer {ALICE}"}
    return httpx.get(f"{gateway.url}/api/kernels/{kernel_id}", headers=headers).status_code


@PROTOCOLS
def test_code_runs_and_what_it_shows_comes_back(gateway: Gateway, protocol: Json) -> None:
    with kernel_at(gateway, **protocol) as kernel:
        first = kernel.execute("print('out')\nx = 20\nx + 1")
        assert (first["status"], first["execution_count"]) == ("ok", 1)
        assert [output["output_type"] for output in first["outputs"]] == ["stream", "execute_result"]
        assert first["outputs"][1]["data"]["text/plain"] == "21"
        failed = kernel.execute("1/0")
        assert (failed["status"], failed["outputs"][0]["ename"]) == ("error", "ZeroDivisionError")
        shown = kernel.execute("display(1, display_id='a')\ndisplay(2, display_id='a', update=True);")
        assert [output["data"]["text/plain"] for output in shown["outputs"]] == ["2"]
        assert kernel.is_alive()
        assert kernel.last_activity is not None
        assert kernel.id in [listed["id"] for listed in kernel.list_kernels()]


@PROTOCOLS
def test_variables_are_listed_and_shown(gateway: Gateway, protocol: Json) -> None:
    with kernel_at(gateway, **protocol) as kernel:
        kernel.execute("n = 3\nword = 'Ünïcode'\ntable = {'a': [1, 2.5, None]}")
        types = {variable["name"]: variable["type"] for variable in kernel.list_variables()}
        assert types == {"n": ["builtins", "int"], "word": ["builtins", "str"], "table": ["builtins", "dict"]}
        data, _ = kernel.get_variable_mimetypes("word")
        assert data["text/plain"] == "'Ünïcode'"


@PROTOCOLS
def test_variables_are_set_and_got_as_what_they_are(gateway: Gateway, protocol: Json) -> None:
    """That takes jupyter_mimetypes in the kernel, too: here it is imported from a zip in the working directory."""
    with kernel_at(gateway, **protocol) as kernel:
        archive = base64.b64encode(zipped(jupyter_mimetypes)).decode()
        bring = (
            f"import base64, sys\nopen('m.zip', 'wb').write(base64.b64decode({archive!r}))\nsys.path.insert(0, 'm.zip')"
        )
        assert kernel.execute(bring)["status"] == "ok"
        kernel.set_variable("sent", {"a": [1, 2.5, None], "word": "Ünïcode"})
        assert text_of(kernel.execute("print(sent['a'], sent['word'])")) == "[1, 2.5, None] Ünïcode\n"
        kernel.execute("sent['more'] = (1, 2)")
        assert kernel.get_variable("sent") == {"a": [1, 2.5, None], "word": "Ünïcode", "more": (1, 2)}


def zipped(package: ModuleType) -> bytes:
    """A package of Python modules as a zip file."""
    (top,) = map(Path, package.__path__)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for module in top.rglob("*.py"):
            archive.write(module, module.relative_to(top.parent))
    return buffer.getvalue()


def test_an_interrupt_leaves_the_variables_and_a_restart_takes_them(gateway: Gateway) -> None:
    with kernel_at(gateway) as kernel:
        kernel.execute("x = 1")
        timer = threading.Timer(1, kernel.interrupt)
        timer.start()
        stopped = kernel.execute("import time\nfor _ in range(600): time.sleep(0.1)", timeout=30)
        timer.join()
        assert (stopped["status"], stopped["outputs"][-1]["ename"]) == ("error", "KeyboardInterrupt")
        assert text_of(kernel.execute("print(x)")) == "1\n"
        before = kernel.id
        kernel.restart()
        assert kernel.id == before
        assert text_of(kernel.execute("print('x' in globals())", timeout=30)) == "False\n"


@PROTOCOLS
def test_input_and_passwords_are_asked_for(gateway: Gateway, protocol: Json) -> None:
    with kernel_at(gateway, **protocol) as kernel:
        asked: list[tuple[str, bool]] = []

        def answer(message: dict[str, Any]) -> None:
            asked.append((message["content"]["prompt"], message["content"]["password"]))
            kernel._manager.client.input("Ada")

        code = "import getpass\nname = input('name? ')\nword = getpass.getpass('word? ')\nprint(name, len(word))"
        reply = kernel.execute(code, allow_stdin=True, stdin_hook=answer, timeout=30)
        assert (reply["status"], text_of(reply)) == ("ok", "Ada 3\n")
        assert asked == [("name? ", False), ("word? ", True)]


@pytest.mark.parametrize("now", [True, False], ids=["by DELETE", "by shutdown_request"])
def test_a_kernel_that_is_shut_down_is_gone(gateway: Gateway, *, now: bool) -> None:
    with kernel_at(gateway) as kernel:
        kernel.execute("1")
        kernel_id = kernel.id
        assert status_of(gateway, kernel_id) == 200
        hurry(kernel)
        kernel._manager.shutdown_kernel(now=now)
        assert status_of(gateway, kernel_id) == 404
        assert not kernel.has_kernel
    assert JupyterKernelClient(server_url=gateway.url, token=ALICE, kernel_id=kernel_id).has_kernel is False


def test_who_only_visits_leaves_the_kernel_as_it_is(gateway: Gateway) -> None:
    with kernel_at(gateway) as owner:
        owner.execute("x = 1")
        with kernel_at(gateway, kernel_id=owner.id) as visitor:
            assert text_of(visitor.execute("print(x); y = 2")) == "1\n"
        assert text_of(owner.execute("print(y)")) == "2\n"


def test_a_wrong_token_is_refused(gateway: Gateway) -> None:
    stranger = JupyterKernelClient(server_url=gateway.url, token="nobody")  # noqa: S106 - of nobody's
    with pytest.raises(HTTPError) as refused:
        stranger.start()
    assert refused.value.response.status_code in (401, 403)


async def test_a_person_joins_the_session_that_an_agent_is_using(client: Client, gateway: Gateway) -> None:
    """The agent speaks /runcode and the person Jupyter: they see each other's variables and runs."""
    await client.run("x = 1", "chat:42")
    kernel_id = (await client.get("/sessions/chat:42"))["kernel_id"]
    with kernel_at(gateway, kernel_id=kernel_id) as person:
        execute = partial(asyncio.to_thread, person.execute)
        assert text_of(await execute("print(x)")) == "1\n"
        assert (await execute("y = x + 1"))["status"] == "ok"
        assert (await client.run("print(y); z = 3", "chat:42"))["output"] == "2\n"
        # Both at once: a run of one waits for the other's.
        code = NUMBERED.format(count=10, pause_s=0.1)
        slow = asyncio.ensure_future(client.run(code, "chat:42"))
        await client.until((await client.runs_of("chat:42", 5))[0]["run_id"], "running")
        assert text_of(await execute("print(n, z)")) == "9 3\n"
        assert (await slow)["status"] == "ok"
    await client.until((await client.runs_of("chat:42", 6))[0]["run_id"], "ok")  # the reply comes before the record
    notebook = await client.get("/sessions/chat:42/notebook")
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sources == ["x = 1", "print(x)", "y = x + 1", "print(y); z = 3", code, "print(n, z)"]
    assert (await client.get("/sessions/chat:42"))["kernel_id"] == kernel_id
