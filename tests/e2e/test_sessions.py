"""Sessions as clients have them, over HTTP, in real containers: what lives on, what is lost, and who may see it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from client_rig import TOKENS, Client, Launch, kernels_of
from docker.api.client import APIClient
from serve_rig import Gateway

MAX_SESSIONS = 4
QUEUE = 8
DEAF = """
while True:
    try:
        while True: pass
    except BaseException: pass
"""

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def gateway(launch: Launch) -> Iterator[Gateway]:
    with launch(
        CELLBLOCK_AUTH_TOKENS=TOKENS,
        CELLBLOCK_SESSIONS_MAX_PER_TENANT=str(MAX_SESSIONS),
        CELLBLOCK_LIMITS_QUEUE=str(QUEUE),
        CELLBLOCK_LIMITS_MEMORY="256M",
        CELLBLOCK_POOL_MAX="12",
    ) as gateway:
        yield gateway


def news(answer: dict[str, object]) -> tuple[object, object]:
    return answer["session_created"], answer["session_lost"]


async def test_variables_functions_imports_and_files_live_from_call_to_call(client: Client, s: str) -> None:
    first = await client.run("import math\nx = [1]\ndef double(n): return 2 * n\nopen('a.txt', 'w').write('kept')", s)
    second = await client.run("x.append(double(math.floor(1.5)))\nprint(x, open('a.txt').read())", s)
    assert (first["status"], news(first), first["execution_count"]) == ("ok", (True, False), 1)
    assert (second["output"], news(second), second["execution_count"]) == ("[1, 2] kept\n", (False, False), 2)
    assert list(first["files"]) == ["a.txt"]
    assert "files" not in second
    alone = await client.run("print('x' in globals())")
    assert alone["output"] == "False\n"
    assert "session_id" not in alone


async def test_the_first_cell_that_imports_pyplot_shows_its_figure(client: Client, s: str) -> None:
    answer = await client.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()", s)
    assert (len(answer["images"]), answer["output"]) == (1, "")


async def test_variables_that_are_sent_stay(client: Client, s: str) -> None:
    await client.session(session_id=s, variables={"a": 1})
    await client.run("b = a + 1", s)
    assert (await client.run("print(a, b, c)", s, variables={"c": 3}))["output"] == "1 2 3\n"
    assert (await client.run("print(a, b, c)", s, variables={"a": 5}))["output"] == "5 2 3\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os; os._exit(3)", "kernel_died"),
        ("import os; os.kill(os.getpid(), 11)", "kernel_died"),
        ("hog = [bytearray(16 << 20) for _ in range(100)]", "oom"),
        ("get_ipython().ask_exit()", "ok"),
        (DEAF, "timeout"),
    ],
    ids=["exit code", "signal", "memory", "ask_exit()", "ignored interrupt"],
)
async def test_lost_variables_are_said_once_and_files_are_kept(client: Client, code: str, status: str, s: str) -> None:
    await client.run("x = 1\nopen('a.txt', 'w').write('kept')", s)
    lost = await client.run(f"print('before', flush=True)\n{code}", s, timeout=1 if status == "timeout" else 20)
    fresh = await client.run("print('x' in globals(), open('a.txt').read())", s)
    usual = await client.run("print(1)", s)
    assert (lost["status"], lost["output"], news(lost)) == (status, "before\n", (False, True))
    assert (fresh["output"], news(fresh)) == ("False kept\n", (True, False))
    assert news(usual) == (False, False)


async def test_a_kernel_that_dies_between_two_runs_is_told_by_the_next(client: Client, s: str) -> None:
    await client.run("import os, threading\nx = 1\nthreading.Timer(0.3, os._exit, [1]).start()", s)
    await asyncio.sleep(1)
    fresh = await client.run("print('x' in globals())", s)
    assert (fresh["output"], news(fresh)) == ("False\n", (True, True))
    assert news(await client.run("1", s)) == (False, False)


async def test_a_timeout_that_is_obeyed_loses_nothing(client: Client, s: str) -> None:
    await client.run("x = 1", s)
    late = await client.run("x = 2\nimport time; time.sleep(60)", s, timeout=0.5)
    assert (late["status"], news(late)) == ("timeout", (False, False))
    assert (await client.run("print(x)", s))["output"] == "2\n"


async def test_a_deleted_session_is_gone_with_all_it_had(
    client: Client, docker_client: APIClient, gateway: Gateway, s: str
) -> None:
    await client.run("x = 1\nopen('a.txt', 'w').write('gone')", s)
    running = asyncio.ensure_future(client.run("import time; print(1, flush=True); time.sleep(60)", s))
    await client.until((await client.runs_of(s, 2))[0]["run_id"], "running")
    there = kernels_of(docker_client, gateway)
    assert (await client.http.delete(f"/sessions/{s}")).status_code == 204
    assert (await running)["status"] == "cancelled"
    assert (await client.http.get(f"/sessions/{s}")).status_code == 404
    fresh = await client.run("import os\nprint('x' in globals(), os.listdir())", s)
    assert (fresh["output"], news(fresh)) == ("False []\n", (True, False))
    async with asyncio.timeout(20):
        while there <= kernels_of(docker_client, gateway):  # warm ones stay, so the one that goes is the session's
            await asyncio.sleep(0.1)


async def test_a_restart_takes_the_variables_and_leaves_the_files_and_those_that_wait(client: Client, s: str) -> None:
    await client.run("x = 1\nopen('a.txt', 'w').write('kept')", s)
    running = asyncio.ensure_future(client.run("import time; time.sleep(60)", s))
    await client.until((await client.runs_of(s, 2))[0]["run_id"], "running")
    waiting = asyncio.ensure_future(client.run("print('x' in globals(), open('a.txt').read())", s))
    await client.runs_of(s, 3)
    restarted = await client.http.post(f"/sessions/{s}/restart")
    assert restarted.status_code == 200
    assert (await running)["status"] == "cancelled"
    assert (await waiting)["output"] == "False kept\n"
    assert (await client.run("print(1)", s))["session_lost"] is False


async def test_a_restart_that_cannot_be_had_is_an_error_and_the_next_run_says_what_is_lost(
    client: Client, s: str
) -> None:
    code = """
import pathlib
startup = pathlib.Path.home() / '.ipython/profile_default/startup'
startup.mkdir(parents=True, exist_ok=True)
(startup / 'first.py').write_text('import os; os._exit(1)')
open('a.txt', 'w').write('kept')
"""
    await client.run(code, s)
    refused = await client.http.post(f"/sessions/{s}/restart")
    assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    assert "its files are gone" in refused.json()["error"]
    assert (await client.get(f"/sessions/{s}"))["state"] == "dead"
    restarted = await client.http.post(f"/sessions/{s}/restart")
    assert (restarted.status_code, restarted.json()["state"], restarted.json()["session_lost"]) == (200, "idle", True)
    fresh = await client.run("import os\nprint(os.listdir())", s)
    assert (fresh["output"], news(fresh)) == ("[]\n", (True, True))
    assert (await client.http.post(f"/sessions/{s}/restart")).json()["session_lost"] is False


async def test_runs_wait_in_their_order_and_the_queue_has_an_end(client: Client, s: str) -> None:
    await client.run("order = []", s)
    runs = [
        asyncio.ensure_future(
            client.run("import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)\norder.append(0)", s)
        )
    ]
    for number in range(1, QUEUE + 1):
        await client.runs_of(s, number + 1)
        runs.append(asyncio.ensure_future(client.run(f"order.append({number})", s)))
    listed = await client.runs_of(s, QUEUE + 2)
    assert [run["status"] for run in listed] == ["queued"] * QUEUE + ["running", "ok"]
    refused = await client.post("order.append('too many')", s)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert int(refused.headers["Retry-After"]) > 0
    # Another session is not held up by this one.
    assert (await client.run("print(1)", "other"))["output"] == "1\n"
    assert not runs[0].done()
    assert (await client.http.put(f"/sessions/{s}/files/go", content=b"")).status_code == 201
    await asyncio.gather(*runs)
    assert (await client.run("print(order)", s))["output"] == f"{list(range(QUEUE + 1))}\n"


async def test_an_interrupt_and_a_cancelled_run_leave_the_variables(client: Client, s: str) -> None:
    await client.run("x = 1", s)
    runs = [asyncio.ensure_future(client.run("import time; time.sleep(60)", s)) for _ in range(2)]
    second, first = (run["run_id"] for run in (await client.runs_of(s, 3))[:2])
    await client.until(first, "running")
    assert (await client.http.post(f"/runs/{second}/cancel")).status_code == 202
    await asyncio.sleep(0.3)
    assert (await client.http.post(f"/sessions/{s}/interrupt")).status_code == 202
    by_id = {answer["run_id"]: answer for answer in await asyncio.gather(*runs)}
    assert (by_id[first]["status"], by_id[first]["exception"]["name"]) == ("error", "KeyboardInterrupt")
    assert by_id[second]["status"] == "cancelled"
    running = asyncio.ensure_future(client.run("import time; time.sleep(60)", s))
    third = (await client.runs_of(s, 4))[0]["run_id"]
    await client.until(third, "running")
    await asyncio.sleep(0.3)
    assert (await client.http.post(f"/runs/{third}/cancel")).status_code == 202
    assert (await running)["status"] == "cancelled"
    usual = await client.run("print(x)", s)
    assert (usual["output"], news(usual)) == ("1\n", (False, False))


async def test_another_tenant_sees_nothing_of_a_session(client: Client, bob: Client, s: str) -> None:
    run = await client.run("x = 'secret'\nopen('a.txt', 'w').write('secret')", s, key="k")
    running = asyncio.ensure_future(client.run("import time; time.sleep(60)", s))
    live = (await client.runs_of(s, 2))[0]["run_id"]
    tried = [
        *(("GET", f"/sessions/{s}{rest}") for rest in ("", "/files", "/files/a.txt", "/notebook")),
        ("PATCH", f"/sessions/{s}"),
        ("DELETE", f"/sessions/{s}"),
        ("POST", f"/sessions/{s}/interrupt"),
        ("POST", f"/sessions/{s}/restart"),
        ("PUT", f"/sessions/{s}/files/b.txt"),
        ("DELETE", f"/sessions/{s}/files/a.txt"),
        *(("GET", f"/runs/{run_id}{rest}") for run_id in (run["run_id"], live) for rest in ("", "/events")),
        *(("POST", f"/runs/{run_id}/cancel") for run_id in (run["run_id"], live)),
    ]
    bodies = {"PATCH": {"json": {}}, "PUT": {"content": b"x"}}
    answers = {(how, path): await bob.http.request(how, path, **bodies.get(how, {})) for how, path in tried}
    assert {key: answer.status_code for key, answer in answers.items()} == dict.fromkeys(answers, 404)
    assert not any("secret" in answer.text for answer in answers.values())
    for path in ("/sessions", "/runs"):  # he may have some of his own
        listed = (await bob.http.get(path)).text
        assert not any(name in listed for name in (s, run["run_id"], live))
    assert (await bob.get("/runs", session_id=s))["runs"] == []
    # The names are free for others: neither the session nor the key is shared.
    own = await bob.run("print('x' in globals())", s, key="k")
    assert (own["output"], news(own)) == ("False\n", (True, False))
    assert [entry["path"] for entry in (await client.get(f"/sessions/{s}/files"))["files"]] == ["a.txt"]
    assert (await bob.http.delete(f"/sessions/{s}")).status_code == 204
    assert not running.done()
    await client.http.post(f"/runs/{live}/cancel")
    await running
    assert (await client.run("print(x)", s))["output"] == "secret\n"


async def test_a_tenant_has_so_many_sessions_and_no_more(client: Client, bob: Client) -> None:
    await asyncio.gather(*(client.session(session_id=f"s{number}") for number in range(MAX_SESSIONS)))
    refused = [await client.http.post("/sessions", json={"session_id": "more"}), await client.post("1", "more")]
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
    assert (await client.run("print(1)"))["output"] == "1\n"
    assert (await client.run("print(1)", "s0"))["output"] == "1\n"
    assert (await bob.run("print(1)", "more"))["output"] == "1\n"
    taken = await client.http.post("/sessions", json={"session_id": "s1"})
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    await client.http.delete("/sessions/s1")
    assert (await client.run("print(1)", "more"))["output"] == "1\n"


async def test_idle_sessions_end_and_those_in_use_live(client: Client) -> None:
    """A machine that stood still for as long as a time-out has shown nothing: then it is done again."""
    for _ in range(5):
        await asyncio.gather(*(client.session(session_id=name) for name in ("idle", "renewed", "busy")))
        for name in ("idle", "renewed", "busy"):
            await client.http.patch(f"/sessions/{name}", json={"idle_timeout": 2.5})
        busy = asyncio.ensure_future(client.run("import time; time.sleep(4)", "busy"))
        steps_s = [time.monotonic()]
        for _ in range(9):
            await asyncio.sleep(0.5)
            renewal = await client.http.patch("/sessions/renewed", json={})
            steps_s.append(time.monotonic())
        gone = await client.http.get("/sessions/idle")
        ended = await busy
        left = {session["session_id"] for session in (await client.get("/sessions"))["sessions"]}
        steps_s.append(time.monotonic())
        if max(after_s - before_s for before_s, after_s in pairwise(steps_s)) < 2:
            break
        await client.end_sessions()
    else:
        pytest.fail("this machine stands still too often")
    assert (renewal.status_code, gone.status_code) == (200, 404)
    assert ended["status"] == "ok"
    assert left == {"renewed", "busy"}


async def test_a_session_that_has_lived_its_time_ends_with_what_runs_in_it(
    client: Client, docker_client: APIClient, gateway: Gateway
) -> None:
    await client.session(session_id="old")
    run_id = await client.begin("import time; time.sleep(20)", "old")
    await client.http.patch("/sessions/old", json={"max_lifetime": 4})
    there = kernels_of(docker_client, gateway)
    ended = await client.until(run_id, "cancelled")
    assert "max_lifetime" in ended["error"]
    async with asyncio.timeout(20):
        while there <= kernels_of(docker_client, gateway):
            await asyncio.sleep(0.1)
    fresh = await client.run("1", "old")
    assert news(fresh) == (True, False)


async def test_the_usage_of_a_session_is_that_of_its_runs(client: Client, s: str) -> None:
    codes = ["x = sum(range(10**6))", "y = bytearray(50 << 20)", "1/0"]
    usages = [(await client.run(code, s))["usage"] for code in codes]
    session = await client.get(f"/sessions/{s}")
    assert session["runs"] == 3
    for name in ("wall_ms", "cpu_ms"):
        assert session["usage"][name] == pytest.approx(sum(usage[name] for usage in usages), abs=0.01)
    assert session["usage"]["memory_peak_bytes"] == max(usage["memory_peak_bytes"] for usage in usages)
    assert session["usage"]["memory_peak_bytes"] > 50 << 20


async def test_the_same_request_ten_times_at_once_is_one_run(client: Client, s: str) -> None:
    code = "count = globals().get('count', 0) + 1\nimport time; time.sleep(0.5)\nprint(count)"
    answers = await asyncio.gather(*(client.run(code, s, key="once") for _ in range(10)))
    assert len({answer["run_id"] for answer in answers}) == 1
    assert answers == [answers[0]] * 10
    assert answers[0]["output"] == "1\n"
    assert (await client.run(code, s, key="once")) == answers[0]
    for fields in ({"session_id": "other"}, {"session_id": s, "variables": {"a": 1}}):
        other = await client.post(code, key="once", **fields)  # type: ignore[arg-type]
        assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert (await client.run("print(count)", s))["output"] == "1\n"


async def test_without_a_session_too_the_same_key_is_one_run(client: Client) -> None:
    async def insist() -> tuple[str, str]:
        while (answer := await client.post("import uuid; print(uuid.uuid4())", key="alone")).status_code == 429:
            await asyncio.sleep(0.2)
        return answer.json()["run_id"], answer.json()["output"]

    assert len(set(await asyncio.gather(*(insist() for _ in range(10))))) == 1
