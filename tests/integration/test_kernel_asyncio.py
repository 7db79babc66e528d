"""Event loops of the code's own, although the kernel's runs: `asyncio.run` and its relatives, interrupts, exits."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from supervised import Run, Supervised, supervised

from gateway.supervisors import SupervisorSwitchboard

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEFINITIONS = """
import asyncio, contextvars, sys, threading, time
async def main(value=1):
    await asyncio.sleep(0.01)
    return value
async def leave():
    await asyncio.sleep(0)
    sys.exit(3)
async def wait():
    print('waiting', flush=True)
    try: await asyncio.sleep(60)
    finally: print('cleaned up')
async def compute():
    print('waiting', flush=True)
    while True: pass
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kernel() -> AsyncIterator[Supervised]:
    """One kernel for all the tests here, in which the coroutines above are defined; none may end it."""
    root = Path(tempfile.mkdtemp(prefix="cb-"))
    async with supervised(root, SupervisorSwitchboard(root / "s")) as supervisor:
        await supervisor.run(DEFINITIONS)
        yield supervisor
        assert supervisor.deaths() == []
    shutil.rmtree(root)


WAYS = {
    "run": "asyncio.run(main())",
    "a script's end": "if __name__ == '__main__':\n    result = asyncio.run(main())\nresult",
    "twice": "asyncio.run(main()) and asyncio.run(main())",
    "in debug mode": "asyncio.run(main(), debug=True)",
    "a runner": "with asyncio.Runner() as runner: result = runner.run(main())\nresult",
    "the current loop": "asyncio.get_event_loop().run_until_complete(main())",
    "the current loop, closed": (
        "loop = asyncio.get_event_loop()\ntry: result = loop.run_until_complete(main())\nfinally: loop.close()\nresult"
    ),
    "a loop shut down": (
        "loop = asyncio.get_event_loop()\nresult = loop.run_until_complete(asyncio.to_thread(int, 1))\n"
        "loop.run_until_complete(loop.shutdown_asyncgens())\nloop.run_until_complete(loop.shutdown_default_executor())\n"
        "loop.stop(); loop.close()\nresult"
    ),
    "a gathering": "sum(asyncio.get_event_loop().run_until_complete(asyncio.gather(main(0), main(1))))",
    "a task": "loop = asyncio.get_event_loop(); loop.run_until_complete(loop.create_task(main()))",
    "a new loop": (
        "loop = asyncio.new_event_loop(); asyncio.set_event_loop(loop); result = loop.run_until_complete(main())\n"
        "loop.close(); result"
    ),
    "for ever": (
        "loop = asyncio.get_event_loop(); task = loop.create_task(main())\n"
        "task.add_done_callback(lambda _: loop.stop()); loop.run_forever(); task.result()"
    ),
    "a thread": (
        "got = []; thread = threading.Thread(target=lambda: got.append(asyncio.run(main()))); thread.start()\n"
        "thread.join(); got[0]"
    ),
    "awaited": "await main()",
    "awaited and run": "await main() and asyncio.run(main()) and asyncio.get_event_loop().run_until_complete(main())",
    "within a coroutine": "async def outer(): return asyncio.run(main())\nawait outer()",
    "a child process": (
        "async def run():\n    child = await asyncio.create_subprocess_exec('sh', '-c', 'exit 1')\n"
        "    return await child.wait()\nasyncio.run(run())"
    ),
    "a queue made outside": (
        "queue = asyncio.Queue()\nasync def pass_on():\n    await queue.put(1)\n    return await queue.get()\n"
        "asyncio.run(pass_on())"
    ),
    "context": (
        "variable = contextvars.ContextVar('variable'); variable.set(1)\nasync def read(): return variable.get()\n"
        "asyncio.run(read())"
    ),
    "generators": (
        "closed = []\nasync def numbers():\n    try:\n        while True: yield 1\n    finally: closed.append(1)\n"
        "async def first():\n    async for n in numbers(): return n\nasyncio.run(first()) and closed[0]"
    ),
}


@pytest.mark.parametrize("way", WAYS)
async def test_coroutines_are_run_in_every_way(kernel: Supervised, way: str) -> None:
    run = await kernel.run(WAYS[way])
    assert (run.reply()["status"], run.text("stderr")) == ("ok", ""), run.reply()
    assert run.value() == "1"
    assert (await kernel.run("await asyncio.to_thread(abs, 1) and await main(2)")).value() == "2"


async def test_a_loop_within_a_loop_of_the_codes_own_is_refused_as_in_a_script(kernel: Supervised) -> None:
    run = await kernel.run("async def outer(): asyncio.run(inner := main())\nasyncio.run(outer())")
    assert run.reply()["ename"] == "RuntimeError"


async def test_a_task_left_behind_goes_on_while_others_run_and_after_them(kernel: Supervised) -> None:
    await kernel.run("async def tick():\n    for n in range(3): await asyncio.sleep(0.02); seen.append(n)\nseen = []")
    run = await kernel.run("task = asyncio.create_task(tick()); asyncio.run(main()); seen")
    assert run.value() == "[]"
    assert (
        await kernel.run("asyncio.get_event_loop().run_until_complete(main(3)); await task; seen")
    ).value() == "[0, 1, 2]"


async def test_time_outs_work_within(kernel: Supervised) -> None:
    run = await kernel.run("asyncio.run(asyncio.wait_for(asyncio.sleep(60), 0.05))")
    assert run.reply()["ename"] == "TimeoutError"


async def interrupted(kernel: Supervised, code: str) -> Run:
    """The run of code that prints `waiting` and is interrupted then."""
    msg_id = kernel.send(code)
    await kernel.until(
        lambda: any("waiting" in str(f.content.get("text")) and f.parent_id == msg_id for f in kernel.frames)
    )
    await asyncio.sleep(0.1)
    kernel.interrupt(msg_id)
    return await kernel.end_of(msg_id)


WAITS = {
    "run": ("asyncio.run(wait())", True),
    "run, computing": ("asyncio.run(compute())", False),
    "a runner": ("with asyncio.Runner() as runner: runner.run(wait())", True),
    "the current loop": ("asyncio.get_event_loop().run_until_complete(wait())", True),
    "the current loop, computing": ("asyncio.get_event_loop().run_until_complete(compute())", False),
    "a new loop": ("asyncio.new_event_loop().run_until_complete(wait())", False),
    "for ever": ("print('waiting', flush=True); asyncio.get_event_loop().run_forever()", False),
    "awaited": ("await wait()", True),
    "awaited, computing": ("await compute()", False),
    "a computing task": ("await asyncio.gather(compute(), wait())", False),
    "computing between awaits": ("await main(); print('waiting', flush=True)\nwhile True: pass", False),
    "run between awaits": ("await main(); asyncio.run(wait())", True),
}


@pytest.mark.parametrize("what", WAITS)
async def test_an_interrupt_ends_the_run_and_not_the_session(kernel: Supervised, what: str) -> None:
    code, cleans_up = WAITS[what]
    run = await interrupted(kernel, f"{code}\nprint('not reached')")
    assert run.end.msg_type == "done"
    assert run.reply()["ename"] in ("KeyboardInterrupt", "CancelledError")
    assert "not reached" not in run.text()
    if cleans_up:  # where the loop goes on, it may be a moment later
        await kernel.until(lambda: any("cleaned up" in str(f.content.get("text")) for f in kernel.frames))
    assert (await kernel.run("await main(2)")).value() == "2"


@pytest.mark.parametrize(
    "code",
    [
        "asyncio.run(leave())",
        "await leave()",
        "await asyncio.gather(leave(), main())",
        "asyncio.get_event_loop().run_until_complete(leave())",
        "with asyncio.Runner() as runner: runner.run(leave())",
    ],
)
async def test_leaving_a_coroutine_ends_the_run(kernel: Supervised, code: str) -> None:
    run = await kernel.run(f"{code}\nprint('not reached')")
    assert (run.reply()["ename"], run.reply()["evalue"], run.text()) == ("SystemExit", "3", "")
    assert (await kernel.run("await main(2)")).value() == "2"


@pytest.mark.parametrize("way", ["sys.exit(3)", "raise KeyboardInterrupt", "raise ValueError"])
async def test_a_task_that_ends_in_the_background_ends_no_more(kernel: Supervised, way: str) -> None:
    await kernel.run(f"async def end(): {way}\ntask = asyncio.create_task(end())")
    assert (await kernel.run("await main(2)")).value() == "2"
    assert (await kernel.run("task.done()")).value() == "True"
    await kernel.run("import gc\ndel task; gc.collect()")  # an exception that nobody asked for is told in this run


@pytest.mark.parametrize("name", ["nest_asyncio", "nest_asyncio2"])
async def test_nest_asyncio_is_there_and_lets_loops_stand_still(kernel: Supervised, name: str) -> None:
    nested = (
        "async def middle(): return asyncio.run(main(2))\n"
        "async def outer(): return asyncio.run(middle()), await main(3)\n"
    )
    for _ in range(2):
        run = await kernel.run(
            f"import {name}\n{name}.apply()\n{nested}"
            "print(asyncio.run(main()), asyncio.get_event_loop().run_until_complete(main()), asyncio.run(outer()))\n"
            "await main(4)"
        )
        assert (run.text(), run.text("stderr"), run.value()) == ("1 1 (2, 3)\n", "", "4")
    run = await interrupted(kernel, "asyncio.run(wait())")
    assert run.reply()["ename"] == "KeyboardInterrupt"
    await kernel.run("import kernel_image.event_loop as loops; loops._nested_by_the_code.clear()")


async def test_widgets_are_answered_to_the_end_while_the_code_awaits(kernel: Supervised) -> None:
    """ipykernel dispatches them in between; what they print belongs to them, and `idle` says that they are done."""
    define = (
        "moved = asyncio.Event()\n"
        "def opened(comm, message):\n    comm.on_msg(lambda message: (print('moved'), moved.set()))\n"
        "get_ipython().kernel.comm_manager.register_target('slider', opened)"
    )
    await kernel.run(define)
    code = "print('waiting for it', flush=True)\nawait asyncio.wait_for(moved.wait(), 60)\nprint('went on')"
    msg_id = kernel.send(code)
    await kernel.printed("waiting for it")
    opened = kernel.send_message("shell", "comm_open", {"comm_id": "1", "target_name": "slider", "data": {}})
    moved = kernel.send_message("shell", "comm_msg", {"comm_id": "1", "data": {}})
    run = await kernel.end_of(msg_id)
    assert (run.text(), run.reply()["status"]) == ("waiting for it\nwent on\n", "ok")

    def said(parent_id: str) -> list[str]:
        contents = [frame.content for frame in kernel.frames if frame.parent_id == parent_id]
        return [str(content.get("text") or content.get("execution_state")) for content in contents]

    await kernel.until(lambda: "idle" in said(opened) and "idle" in said(moved))
    assert said(moved) == ["moved\n", "idle"]
