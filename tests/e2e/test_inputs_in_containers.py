"""Files, paths to fetch and environment of a run, over HTTP, in real containers."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
from client_rig import TINY_PNG, TOKENS, Client, Launch, hear, tell
from serve_rig import Gateway

CSV = "day,total\n1,12.5\n2,3.25\n"
SUM = "import csv\nprint(sum(float(row['total']) for row in csv.DictReader(open('data/sales.csv'))))"
SHOW = "import os, subprocess\nprint(os.environ.get('API_KEY'), subprocess.getoutput('echo $API_KEY'))"
NOTHING = "None \n"
SECRET = {"API_KEY": "s3cret"}

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def gateway(launch: Launch) -> Iterator[Gateway]:
    with launch(
        CELLBLOCK_AUTH_TOKENS=TOKENS,
        CELLBLOCK_LANGUAGES_ENV_ALLOWED="API_KEY",
        CELLBLOCK_LIMITS_DISK="16M",
        CELLBLOCK_POOL_MAX="12",
    ) as gateway:
        yield gateway


def text(content: str) -> dict[str, str]:
    return {"text": content}


def binary(content: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(content).decode()}


async def test_a_table_is_there_when_the_code_runs_and_does_not_come_back(client: Client) -> None:
    answer = await client.run(SUM, files={"data/sales.csv": text(CSV)})
    assert (answer["status"], answer["output"]) == ("ok", "15.75\n")
    assert "files" not in answer
    code = "open('a', 'a').write('x')\nopen('b', 'w').write('n')"
    changed = await client.run(code, files={"a": text("1"), "kept": text("k")})
    assert [*changed["files"]] == ["a", "b"]
    assert (await client.http.get(changed["files"]["a"])).text == "1x"


async def test_large_binary_files_arrive_byte_for_byte_and_belong_to_the_code(client: Client) -> None:
    data = os.urandom(3 << 20)
    code = (
        "import hashlib, os\nprint(hashlib.sha256(open('d/large', 'rb').read()).hexdigest(), len(open('e').read()))\n"
        "os.unlink('d/large'); os.rmdir('d'); print(os.listdir())"
    )
    answer = await client.run(code, files={"d/large": binary(data), "e": text("")})
    assert (answer["status"], answer["output"]) == ("ok", f"{hashlib.sha256(data).hexdigest()} 0\n['e']\n"), answer


async def test_files_that_no_run_has_changed_are_fetched(client: Client, s: str) -> None:
    png = base64.b64decode(TINY_PNG)
    await client.session(session_id=s, files={"p/a.png": binary(png), "t.csv": text(CSV)})
    assert [file["path"] for file in (await client.get(f"/sessions/{s}/files"))["files"]] == ["p/a.png", "t.csv"]
    answer = await client.run("print(len(open('t.csv').read()))", s, fetch=["t.csv", "p/a.png", "nowhere", "p"])
    assert (answer["status"], answer["output"], "truncated" in answer) == ("ok", f"{len(CSV)}\n", False)
    assert ([*answer["images"]], [*answer["files"]]) == (["p/a.png"], ["t.csv"])
    assert (await client.http.get(answer["images"]["p/a.png"])).content == png
    lines = [f"[cellblock] {path} was not fetched: there is no file of this name\n" for path in ("nowhere", "p")]
    assert answer["stderr"] == "".join(lines)
    events = await client.events(answer["run_id"])
    assert [event["name"] for event in events if event["type"] in ("image", "file")] == ["t.csv", "p/a.png"]
    assert "".join(event["text"] for event in events if event["type"] == "stderr") == answer["stderr"]
    again = await client.run("1", s)
    assert not {"images", "files", "stderr"} & again.keys()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("1 / 0", "error"),
        ("os.environ['API_KEY'] = 'changed'", "ok"),
        ("import time; time.sleep(60)", "timeout"),
        ("os._exit(1)", "kernel_died"),
    ],
)
async def test_an_environment_is_for_one_run_however_that_ends(client: Client, s: str, code: str, status: str) -> None:
    assert (await client.run(SHOW, s))["output"] == NOTHING
    with_env = await client.run(f"{SHOW}\n{code}", s, env=SECRET, timeout=3 if status == "timeout" else 30)
    assert (with_env["status"], with_env["output"]) == (status, "s3cret s3cret\n")
    for session_id in (s, None):
        assert (await client.run(SHOW, session_id))["output"] == NOTHING
    assert "s3cret" not in client.gateway.log.read_text()


async def test_over_a_web_socket_too(client: Client) -> None:
    async with client.socket() as ws:
        code = "import os; print(os.environ['API_KEY'], open('a').read())"
        await tell(ws, op="run", code=code, files={"a": text("1")}, env=SECRET, fetch=["a"])
        events: list[dict[str, Any]] = []
        while not events or events[-1]["type"] != "end":
            events.append(await hear(ws))
    assert (events[-1]["status"], events[-1]["output"]) == ("ok", "s3cret 1\n")
    assert [event["name"] for event in events if event["type"] == "file"] == ["a"]


BEFORE = {
    "a link": ("import os; os.symlink('/etc/passwd', 'a')", "a", "symbolic link"),
    "a link on the way": ("import os; os.symlink('/tmp', 'd')", "d/a", "symbolic link"),
    "a directory": ("import os; os.mkdir('a')", "a", "no regular file"),
    "a file for a directory": ("open('d', 'w')", "d/a", "no regular file"),
    "a full disk": ("try: open('full', 'wb').write(bytes(64 << 20))\nexcept OSError: pass", "a", "no room"),
}


@pytest.mark.parametrize(("code", "path", "said"), BEFORE.values(), ids=BEFORE)
async def test_a_file_that_cannot_be_written_is_said_and_the_code_is_not_run(
    client: Client, s: str, code: str, path: str, said: str
) -> None:
    await client.run(code, s)
    answer = await client.run("print('ran')", s, files={path: text("x" * (1 << 20))})
    assert (answer["status"], answer["output"]) == ("error", "")
    assert answer["error"].startswith(f"The file {path} could not be written. ")
    assert said in answer["error"]
    events = await client.events(answer["run_id"])
    assert [event["type"] for event in events] == ["started", "end"]
    assert (await client.run("print('goes on')", s))["output"] == "goes on\n"


async def test_a_key_covers_what_a_run_is_given(client: Client) -> None:
    first = await client.run("open('a').read()", key="k", files={"a": text("1")})
    again = await client.run("open('a').read()", key="k", files={"a": text("1")})
    other = await client.post("open('a').read()", key="k", files={"a": text("2")})
    assert (again["run_id"], other.status_code) == (first["run_id"], 409)


async def test_a_directory_that_is_read_only_is_named_as_what_the_code_has_to_mend(client: Client, s: str) -> None:
    await client.run("import os; os.mkdir('d', 0o500)", s)
    refused = await client.run("1", s, files={"d/a": text("x")})
    assert refused["status"] == "error"
    assert "d/a could not be written. Code in the session has taken away the permission" in refused["error"]
    assert "try again" not in refused["error"]
    put = await client.http.put(f"/sessions/{s}/files/d/a", content=b"x")
    assert (put.status_code, put.json()["code"]) == (400, "invalid_request")
    answer = await client.run("os.chmod('d', 0o700)", s)
    assert answer["status"] == "ok"
    assert (await client.run("print(open('d/a').read())", s, files={"d/a": text("x")}))["output"] == "x\n"
