"""Bash over HTTP in real containers: what the original API's clients send, sessions, and texts that mean harm."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import nbformat
import pytest
from client_rig import Client, hear, tell

pytestmark = pytest.mark.docker

VALUES = '{"NAME": "it\'s", "N": 3, "D": {"a": [1, null]}}'
SHOWN = 'it\'s|3|{"a": [1, null]}\n'
SHOW = "sh -c 'echo \"$NAME|$N|$D\"'"


def bash(client: Client, code: str, session_id: str | None = None, **fields: Any) -> Any:
    return client.run(code, session_id, languageType="bash", **fields)


async def test_the_original_apis_requests_run_with_variables_in_the_environment(client: Client) -> None:
    fields = {"languageType": "bash", "variables": VALUES, "code": SHOW}
    form = await client.http.post("/runcode", data=fields)
    query = await client.http.get("/runcode", params=fields)
    fenced = await client.http.post("/runcode", json={"languageType": "Bash", "code": "```bash\necho fenced\n```\n"})
    answers = [answer.json() for answer in (form, query, fenced)]
    assert [(answer["status"], answer["output"]) for answer in answers] == [("ok", SHOWN)] * 2 + [("ok", "fenced\n")]
    refused = await client.post("echo", languageType="bash", variables={"a-b": 1})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert '"a-b", which cannot be a variable in Bash' in refused.json()["error"]


async def test_a_status_is_an_error_and_files_and_images_come_back(client: Client) -> None:
    code = (
        "echo out; echo err >&2; echo 1,2 >t.csv\n"
        'python3 -c \'from PIL import Image; Image.new("RGB", (2, 2)).save("a.png")\'; nothing_of_this_name'
    )
    answer = await bash(client, code)
    assert (answer["status"], answer["output"], [*answer["images"]], [*answer["files"]]) == (
        "error",
        "out\n",
        ["a.png"],
        ["t.csv"],
    )
    assert answer["stderr"] == "err\n./main.sh: line 2: nothing_of_this_name: command not found\n"
    assert (answer["exception"]["name"], answer["exception"]["value"]) == ("ExitStatus", "127")
    assert answer["error"].startswith("ExitStatus: The last command ended with exit status 127")
    assert answer["usage"]["memory_peak_bytes"] > 0


async def test_a_session_keeps_its_shell_through_a_time_out_and_is_told_when_it_ends(client: Client, s: str) -> None:
    await bash(client, 'x=1; f() { echo "f $x"; }; mkdir d; cd d', s, variables={"V": "v"})
    timed_out = await bash(client, "echo begun; while :; do sleep 1; done", s, timeout=1)
    assert (timed_out["status"], timed_out["output"], timed_out["session_lost"]) == ("timeout", "begun\n", False)
    assert (await bash(client, "f; pwd; echo $V; touch kept", s))["output"] == "f 1\n/work/d\nv\n"
    ended = await bash(client, "echo bye; exit 3", s)
    assert (ended["status"], ended["output"], ended["session_lost"]) == ("error", "bye\n", True)
    fresh = await bash(client, 'echo "[$x]"; pwd; ls d', s)
    assert (fresh["output"], fresh["session_created"], fresh["session_lost"]) == ("[]\n/work\nkept\n", True, False)
    killed = await bash(client, "echo last; kill -9 $$", s)
    assert (killed["status"], killed["output"], killed["session_lost"]) == ("kernel_died", "last\n", True)
    other = await client.post("1", s)
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    document = nbformat.reads((await client.http.get(f"/sessions/{s}/notebook")).text, as_version=4)
    nbformat.validate(document)
    assert document.metadata["language_info"]["file_extension"] == ".sh"
    assert document.cells[0]["source"] == "export V='v'"


async def test_output_is_streamed_while_the_code_runs(client: Client, s: str) -> None:
    code = "echo first; until [ -e go ]; do sleep 0.05; done; echo last"
    texts: list[str] = []
    async with client.streaming("POST", "/runcode", code=code, languageType="bash", session_id=s) as events:
        async for event in events:
            if event["type"] == "stdout":
                texts.append(event["text"])
                if texts == ["first\n"]:
                    await client.http.put(f"/sessions/{s}/files/go", content=b"")
    assert "".join(texts) == "first\nlast\n"


async def test_read_asks_over_a_web_socket(client: Client) -> None:
    code = "read -p 'Name: ' name; echo \"<$name>\"; cat"
    async with client.socket() as ws:
        await tell(ws, op="run", id="1", code=code, languageType="bash")
        said = []
        while (event := await hear(ws))["type"] != "end":
            said += [event["text"]] if event["type"] == "stdout" else []
            if event["type"] == "input_request":
                assert (event["prompt"], event["password"]) == ("Name: ", False)
                await tell(ws, op="input", run_id=event["run_id"], value="Ada")
    assert (event["status"], "".join(said)) == ("ok", "<Ada>\n")


async def test_memory_is_counted_in_programs_and_in_the_shell(client: Client, s: str) -> None:
    program = await bash(client, "python3 -c 'bytearray(4 << 30)'; echo $?", s)
    assert (program["output"], program["session_lost"]) == ("137\n", False)
    assert "memory limit" in program["stderr"]
    shell = await bash(client, "echo begun; x=$(head -c 2G /dev/zero | tr '\\0' x); echo no", s, timeout=120)
    assert (shell["status"], shell["session_lost"]) == ("oom", True)


HOSTILE = {
    "a fork bomb": "f() { f | f & }; f; sleep 1",
    "everything killed": "kill -9 -1",
    "the supervisor killed": "kill -9 1; kill -TERM 1; kill -INT 1",
    "a flood": "yes | head -c 200000000",
    "a flood of errors": "yes | head -c 50000000 >&2",
    "one long line": "head -c 50000000 /dev/zero | tr '\\0' x",
    "no text": "head -c 3000000 /dev/urandom",
    "reports of its own": "printf 'ended 1 0 hBs\\nended 2 0 hBs\\nended 3 0 hBs\\n' >&200; sleep 1",
    "reports that are none": "head -c 1000000 /dev/urandom >&200; printf 'ended\\nended x y\\nbegun\\n' >&200",
    "descriptors closed": "exec 200>&- 201>&- 202>&- 0<&- 1>&- 2>&-",
    "the driver redefined": "builtin() { :; }; exec() { :; }; eval() { :; }; __cellblock_back() { exit; }",
    "our files gone": "rm -rf /run/ipc/* /run/ipc/.* ~ /work/.*; chmod 0 /run/ipc /work",
    "a disk that is full": "head -c 2G /dev/zero >full; head -c 1G /dev/zero >/run/ipc/full",
    "a shell that stops": "kill -STOP $$",
    "a trap for everything": "trap '' INT TERM HUP QUIT; while :; do :; done",
    "a terminal": "exec </dev/tty; stty -a; read x",
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_a_text_that_means_harm_ends_and_the_session_goes_on(client: Client, s: str, what: str) -> None:
    answer = await bash(client, HOSTILE[what], s, timeout=4)
    assert answer["status"] in {"ok", "error", "timeout", "kernel_died", "oom"}, answer
    assert len(answer["output"]) <= 8 << 20
    after: dict[str, Any] = {}
    for _ in range(3):  # a shell that was made useless is a time-out, and is followed by a fresh one
        after = await bash(client, "command echo fine", s, timeout=5)
        if after["output"].endswith("fine\n"):
            break
    assert after["output"].endswith("fine\n"), after


async def test_many_at_once_wait_for_each_other(client: Client) -> None:
    answers = await asyncio.gather(*(bash(client, f"echo {n}") for n in range(6)))
    assert [answer["output"] for answer in answers] == [f"{n}\n" for n in range(6)]


async def test_jupyter_clients_find_it(client: Client) -> None:
    specs: dict[str, Any] = (await client.get("/api/kernelspecs"))["kernelspecs"]
    assert (specs["bash"]["spec"]["display_name"], specs["bash"]["spec"]["language"]) == ("Bash", "bash")
    made: httpx.Response = await client.http.post("/api/kernels", json={"name": "bash"})
    assert (made.status_code, made.json()["name"]) == (201, "bash")
    assert (await client.http.delete(f"/api/kernels/{made.json()['id']}")).status_code == 204
