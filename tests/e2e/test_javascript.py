"""JavaScript and TypeScript in real containers, over HTTP, and what code can do to a kernel that is not ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from client_rig import TOKENS, Client, Launch, hear, tell
from serve_rig import Gateway

pytestmark = pytest.mark.docker

NULL_ROW = """// a comment

interface Row { id: number }
function check(row: Row) {

  return row.id.toFixed();
}

check(null)
"""
UNHANDLED = """
setTimeout(() => { throw new Error("late") }, 1);
Promise.reject(new Error("unhandled"));
await new Promise((resolve) => setTimeout(resolve, 200));
"""
FORKS = """
for (let i = 0; i < 300; i++) {
  try { new Deno.Command("sh", { args: ["-c", "sleep 100 & sleep 100 &"] }).spawn() } catch {}
}
await new Promise((resolve) => setTimeout(resolve, 500));
"""
KEEP = "globalThis.kept = (globalThis.kept ?? 0) + 1; kept"


@pytest.fixture(scope="module")
def gateway(launch: Launch) -> Iterator[Gateway]:
    with launch(
        CELLBLOCK_AUTH_TOKENS=TOKENS, CELLBLOCK_LANGUAGES_ENV_ALLOWED="API_KEY", CELLBLOCK_POOL_MAX="12"
    ) as gateway:
        yield gateway


async def run(client: Client, code: str, session_id: str | None = None, **fields: Any) -> dict[str, Any]:
    return await client.run(code, session_id, **{"languageType": "javascript", **fields})


async def test_output_results_and_files_are_all_there_and_in_order(client: Client) -> None:
    code = """
import { writeFileSync } from "node:fs";
const png: string = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
enum Colour { Red = 7 }
for (let i = 0; i < 2000; i++) console.log("line", i);
process.stdout.write("written\\n");
console.error("an error");
const options = { args: ["-c", "echo child; echo child >&2"], stdout: "inherit", stderr: "inherit" };
await new Deno.Command("sh", options).output();
writeFileSync("table.csv", "a,b\\n");
Deno.writeFileSync("dot.png", Uint8Array.from(atob(png), (c) => c.charCodeAt(0)));
for (let i = 0; i < 20; i++) await Deno.jupyter.display(i);
await Deno.jupyter.display({ "image/png": png }, { raw: true });
Deno.jupyter.html`<b>${Colour.Red}</b>`
"""
    answer = await run(client, f"```ts\n{code}```", languageType="typescript")
    assert (answer["status"], answer["execution_count"]) == ("ok", 1), answer
    lines = [f"line {i}" for i in range(2000)]
    assert [line for line in answer["output"].splitlines() if line != "child"] == [*lines, "written"]
    assert sorted(answer["stderr"].splitlines()) == ["an error", "child"]
    assert "child\n" in answer["output"]
    assert answer["results"][:20] == [{"text/plain": str(i)} for i in range(20)]
    assert answer["results"][20:] == [{"image": "figure-1.png"}, {"text/html": "<b>7</b>"}]
    assert (sorted(answer["images"]), [*answer["files"]]) == (["dot.png", "figure-1.png"], ["table.csv"])


async def test_a_session_keeps_its_variables_and_errors_name_the_line(client: Client, s: str) -> None:
    given: dict[str, Any] = {"table": {"k": [1, None, True, 2.5, "\"'`${1}\\"]}, "名": "x", "limit": 3}
    code = "let limit = 4; const rows: number[] = [1, 2];\nconsole.log(JSON.stringify([table.k, 名, limit]))"
    first = await run(client, code, s, variables=given)
    assert json.loads(first["output"]) == [given["table"]["k"], "x", 4]
    again = await run(client, "limit + rows.length", s, variables={"limit": 10}, languageType="typescript")
    assert (again["results"], again["session_created"]) == ([{"text/plain": "12"}], False)

    kept = await run(client, "rows.length", s, variables={"rows": []})
    assert (kept["results"], "rows could not be set" in kept["stderr"]) == ([{"text/plain": "2"}], True)

    failed = await run(client, NULL_ROW, s)
    assert (failed["status"], failed["exception"]["name"], failed["exception"]["line"]) == ("error", "TypeError", 6)
    assert failed["error"].startswith("TypeError: Cannot read properties of null")
    assert "\x1b" not in failed["error"]
    wrong = await run(client, "let fine = 1;\nlet x = ;", s)
    assert (wrong["exception"]["name"], wrong["exception"]["line"]) == ("SyntaxError", 2)
    assert "let x = ;" in wrong["error"]

    for code, status in (("process.exit(0); console.log(1)", "ok"), ("Deno.exit(3); console.log(1)", "error")):
        left = await run(client, code, s)
        assert (left["status"], left.get("output"), left["session_lost"]) == (status, "", False)
    unhandled = await run(client, UNHANDLED, s)
    assert unhandled["status"] == "ok"
    assert "Uncaught Error: late" in unhandled["stderr"]
    assert "Uncaught Error: unhandled" in unhandled["stderr"]
    assert (await run(client, "rows", s))["results"] == [{"text/plain": "[ 1, 2 ]"}]


async def test_names_environment_and_imports(client: Client, s: str) -> None:
    refused = await client.post("1", s, languageType="javascript", variables={"class": 1})
    assert (refused.status_code, "class" in refused.json()["error"]) == (400, True)
    values = {"value": 1, "self": 2, "closed": 3, "huge": 4}
    body = json.dumps({"code": "[value, self, closed, huge]", "languageType": "javascript", "variables": values})
    headers = {"Content-Type": "application/json"}
    shown = await client.http.post("/runcode", content=body.replace("4", "1e999"), headers=headers)
    assert shown.json()["results"] == [{"text/plain": "[ 1, 2, 3, Infinity ]"}]
    show = "[Deno.env.get('API_KEY'), require('child_process').execSync('echo $API_KEY').toString().trim()]"
    assert (await run(client, show, s, env={"API_KEY": "k"}))["results"] == [{"text/plain": '[ "k", "k" ]'}]
    assert (await run(client, show, s))["results"] == [{"text/plain": '[ undefined, "" ]'}]
    for name in ("npm:left-pad", "jsr:@std/path", "https://example.org/x.ts"):
        failed = await run(client, f"import x from '{name}'; x", s, timeout=60)
        assert (failed["status"], bool(failed["error"])) == ("error", True)


async def test_an_endless_loop_is_interrupted_and_code_that_waits_ends_its_kernel(client: Client, s: str) -> None:
    await run(client, KEEP, s)
    endless = await run(client, "console.log('begun'); while (true) {}", s, timeout=4)
    assert (endless["status"], endless["output"], endless["session_lost"]) == ("timeout", "begun\n", False)
    assert (endless["exception"]["name"], "stderr" in endless) == ("Interrupted", False)
    assert (await run(client, KEEP, s))["results"] == [{"text/plain": "2"}]
    waiting = await run(client, "await new Promise(() => {})", s, timeout=2)
    assert (waiting["status"], waiting["session_lost"]) == ("timeout", True)
    assert (await run(client, KEEP, s))["results"] == [{"text/plain": "1"}]


async def test_memory_output_and_processes_have_limits(client: Client, s: str) -> None:
    full = await run(client, "console.log('begun'); const all = []; while (true) all.push(new Array(1e6).fill(1.5))", s)
    assert (full["status"], full["output"], full["session_lost"]) == ("oom", "begun\n", True)
    flood = await run(client, "for (let i = 0; i < 30000; i++) console.log('x'.repeat(1000)); 'end'", s, timeout=120)
    assert (flood["status"], flood["truncated"], flood["results"]) == ("ok", True, [{"text/plain": '"end"'}])
    assert len(flood["output"]) <= 1 << 20
    large = await run(client, "console.log('x'.repeat(20e6)); 'end'", s, timeout=120)
    assert (large["status"], large["truncated"], large["results"]) == ("ok", True, [{"text/plain": '"end"'}])
    await run(client, FORKS, s)
    fresh = await run(client, "1 + 1")
    assert fresh["results"] == [{"text/plain": "2"}]
    assert fresh["usage"]["memory_peak_bytes"] < 512 << 20


HOSTILE = {
    "kill the supervisor": "for (const n of ['SIGTERM', 'SIGKILL', 'SIGSTOP']) { try { Deno.kill(1, n) } catch {} } 1",
    "read its memory": "try { Deno.readFileSync('/proc/1/environ'); 'read' } catch { 1 }",
    "write what is no message": """
for (const { name } of Deno.readDirSync("/proc/self/fd")) {
  try {
    if (!Deno.readLinkSync(`/proc/self/fd/${name}`).startsWith("pipe:")) continue;
    const pipe = Deno.openSync(`/proc/self/fd/${name}`, { write: true });
    const text = 'x\\n[1]\\n{"type": "status", "content": {"execution_state": "idle"}}\\n{"type": ';
    pipe.writeSync(new TextEncoder().encode(text));
    pipe.writeSync(new TextEncoder().encode("\\n"));
  } catch {}
}
1
""",
    "forge replies": """
const files = [...Deno.readDirSync("/run/ipc")].filter(f => f.name.endsWith(".json"));
const info = JSON.parse(Deno.readTextFileSync("/run/ipc/" + files[0].name));
for (const name of ["shell_port", "iopub_port", "control_port", "stdin_port", "hb_port"]) {
  const connection = await Deno.connect({ hostname: "127.0.0.1", port: info[name] });
  await connection.write(crypto.getRandomValues(new Uint8Array(1000)));
}
1
""",
    "break the language": """
JSON.stringify = JSON.parse = () => { throw 1 }; Object.prototype.then = 1; Array.prototype[Symbol.iterator] = null;
console.log = 1; Deno.jupyter = null; globalThis.Error = null; 1
""",
}


@pytest.mark.parametrize("attack", HOSTILE)
async def test_an_attack_harms_its_own_session_at_most(client: Client, s: str, attack: str) -> None:
    answer = await run(client, HOSTILE[attack], s, timeout=10)
    assert answer["status"] in ("ok", "error", "timeout", "kernel_died"), answer
    assert "read" not in json.dumps(answer.get("results", []))
    after = await run(client, "console.error('still'); 2", s, timeout=10)
    assert after["status"] in ("ok", "error", "timeout", "kernel_died"), after
    fresh = await run(client, KEEP)
    assert (fresh["status"], fresh["results"]) == ("ok", [{"text/plain": "1"}])


async def test_the_end_of_the_process_is_told_with_what_it_had_written(client: Client, s: str) -> None:
    died = await run(client, "console.log('said'); Deno.kill(Deno.pid, 'SIGKILL')", s)
    assert (died["status"], died["output"], died["session_lost"]) == ("kernel_died", "said\n", True)
    assert (await run(client, KEEP, s))["results"] == [{"text/plain": "1"}]


async def test_output_streams_and_a_prompt_asks(client: Client) -> None:
    async with client.socket() as socket:
        code = "console.log('first'); const name = prompt('name?'); console.log(`hello ${name}`)"
        await tell(socket, op="run", id="a", code=code, language="javascript")
        events = []
        while (event := await hear(socket))["type"] != "end":
            events.append(event)
            if event["type"] == "input_request":
                assert event["prompt"].startswith("name?")
                await tell(socket, op="input", run_id=event["run_id"], value="Ann")
        output = "".join(event["text"] for event in events if event["type"] == "stdout")
        assert (event["status"], output) == ("ok", "first\nhello Ann\n")
        assert [event["type"] for event in events][:3] == ["started", "stdout", "input_request"]
    assert (await run(client, "prompt('name?') === null"))["results"] == [{"text/plain": "true"}]


async def test_many_runs_beside_one_another(client: Client) -> None:
    answers = await asyncio.gather(*(run(client, f"console.log({n})", timeout=60) for n in range(3)))
    assert [answer["output"] for answer in answers] == [f"{n}\n" for n in range(3)]
