"""A real supervisor and a gateway that comes and goes: nothing missing, nothing twice, and a gap where there is one."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from supervised import Frame, Supervised, new_request, supervised

from gateway.supervisors import SupervisorSwitchboard
from kernel_image.protocol import QUESTION_ID, encode_message
from sessions.kernels.messages import RequestBuilder
from sessions.settings import Limits


@pytest.fixture
async def kernel(short_dir: Path, switchboard: SupervisorSwitchboard) -> AsyncIterator[Supervised]:
    async with supervised(short_dir, switchboard) as kernel:
        yield kernel


def gaps(kernel: Supervised) -> int:
    return sum(frame.content["dropped_bytes"] for frame in kernel.frames if frame.msg_type == "gap")


async def test_a_request_that_comes_twice_runs_once(kernel: Supervised) -> None:
    await kernel.run("count = 0")
    msg_id, frame = new_request("count += 1; import time; time.sleep(0.2)")
    kernel.send_frame(frame)
    kernel.send_frame(frame)
    await kernel.end_of(msg_id)
    kernel.send_frame(frame)
    assert (await kernel.run("count")).value() == "1"


async def test_a_request_whose_kernel_died_is_not_run_by_the_next_kernel(kernel: Supervised) -> None:
    path = kernel.work_dir / "ran"
    msg_id, frame = new_request(f"open({str(path)!r}, 'a').write('x'); import os; os._exit(0)")
    kernel.send_frame(frame)
    await kernel.end_of(msg_id)
    await kernel.ready(generation=2)
    kernel.send_frame(frame)
    await kernel.run("pass")
    assert path.read_text() == "x"


async def test_a_gateway_that_sends_no_frames_is_hung_up_on_and_dialled_again(kernel: Supervised) -> None:
    for garbage in (b"", b"nonsense", b"\xff" * 200):
        before = len(kernel.hellos)
        kernel.send_frame(garbage)
        await kernel.until(partial(_has_dialled_again, kernel, before))
        assert (await kernel.run("1 + 1")).value() == "2", garbage


def _has_dialled_again(kernel: Supervised, before: int) -> bool:
    return len(kernel.hellos) == before + 1


async def test_a_request_without_a_header_is_not_run(kernel: Supervised) -> None:
    for part in (b"{", b"[]", b"{}", b'{"msg_id": 5}', b"\xff"):
        kernel.send_frame(encode_message("shell", [part] * 4))
        assert (await kernel.run("1 + 1")).value() == "2", part
    assert len(kernel.hellos) == 1


@pytest.mark.parametrize("acknowledges", [True, False])
async def test_after_a_reconnect_nothing_is_missing_and_nothing_repeated(
    kernel: Supervised, *, acknowledges: bool
) -> None:
    kernel.acknowledges = acknowledges
    code = "import time\nfor i in range(400): print(i, flush=True); time.sleep(0.002)"
    msg_id = kernel.send(code)
    for number in (20, 120, 250):
        await kernel.printed(f"{number}\n")
        if not acknowledges:
            kernel.acknowledged = len(kernel.frames)  # the welcome says it
        await kernel.reconnect()
        assert kernel.hellos[-1]["outstanding"] == [msg_id]
    run = await kernel.end_of(msg_id)
    assert run.text() == "".join(f"{number}\n" for number in range(400))
    assert run.end.msg_type == "done"


async def test_what_was_taken_and_not_acknowledged_comes_again(kernel: Supervised) -> None:
    kernel.acknowledges = False
    kernel.acknowledged = len(kernel.frames)
    run = await kernel.run("print('hello')")
    assert kernel.resent == 0
    await kernel.reconnect()
    await kernel.until(lambda: kernel.resent == len(kernel.frames) - kernel.acknowledged)
    assert kernel.hellos[-1]["oldest_seq"] <= kernel.acknowledged + 1
    assert kernel.hellos[-1]["next_seq"] == len(kernel.frames) + 1
    assert run.msg_id in kernel.hellos[-1]["finished"]
    assert kernel.hellos[-1]["outstanding"] == []


async def test_a_run_that_ends_while_no_gateway_is_there_is_told_whole(kernel: Supervised) -> None:
    msg_id = kernel.send("import time; time.sleep(0.3)\nfor i in range(1000): print(i)\nopen('f', 'w').write('x')")
    kernel.welcomes = False
    assert kernel.link is not None
    kernel.link.close("away for a while")
    await asyncio.sleep(1.0)
    kernel.welcomes = True
    run = await kernel.end_of(msg_id)
    assert run.text() == "".join(f"{number}\n" for number in range(1000))
    assert run.files() == {"f": b"x"}


async def test_every_greeting_is_of_the_same_boot(kernel: Supervised) -> None:
    await kernel.reconnect()
    first, second = kernel.hellos
    assert first["boot_id"] == second["boot_id"]
    assert (second["kernel_id"], second["credential"], second["state"]) == (kernel.kernel_id, "the credential", "idle")


async def test_an_overflowing_spool_drops_output_says_how_much_and_keeps_the_end(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard, spool_bytes=200_000) as kernel:
        kernel.acknowledges = False
        kernel.acknowledge(len(kernel.frames))
        msg_id = kernel.send("for i in range(1000): print('x' * 999, flush=True)")
        run = await kernel.end_of(msg_id)
        assert run.end.msg_type == "done"
        assert run.reply()["status"] == "ok"
        assert 0 < len(run.text()) < 200_000
        assert gaps(kernel) >= 1_000_000 - len(run.text())
        assert "gap" in [frame.msg_type for frame in kernel.frames[:-2]]
        kernel.acknowledges = True
        kernel.acknowledge(len(kernel.frames))
        assert (await kernel.run("print('again')")).text() == "again\n"


async def test_a_flood_of_anything_published_is_bounded_too(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard, spool_bytes=200_000) as kernel:
        kernel.acknowledges = False
        kernel.acknowledge(len(kernel.frames))
        before = len(kernel.frames)
        msg_id = kernel.send("from IPython.display import clear_output\nfor i in range(2000): clear_output()")
        run = await kernel.end_of(msg_id)
        assert run.end.msg_type == "done"
        assert len(kernel.frames) - before < 1000
        assert gaps(kernel) > 100_000


async def test_one_run_cannot_pass_on_more_than_its_share(short_dir: Path, switchboard: SupervisorSwitchboard) -> None:
    async with supervised(short_dir, switchboard, relay_bytes=100_000) as kernel:
        flood = "for _ in range(300): print('x' * {}, flush=True); time.sleep(0.006)"
        run = await kernel.run("\n".join(("import time", flood.format(999), flood.format(1), "42")))
        assert 0 < len(run.text()) < 100_000
        assert run.value() == "42"
        assert gaps(kernel) >= 300_000 - len(run.text())
        assert (await kernel.run("print('another run')")).text() == "another run\n"


async def test_a_message_over_the_limit_is_cut_when_it_is_text_and_dropped_otherwise(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard, max_message_bytes=100_000) as kernel:
        run = await kernel.run("print('y' * 500_000)")
        assert set(run.text()) == {"y"}
        assert gaps(kernel) > 400_000
        run = await kernel.run("from IPython.display import *\ndisplay(HTML('z' * 500_000))\nprint('after')")
        assert "display_data" not in run.types()
        assert "gap" in run.types()
        assert run.text() == "after\n"


@pytest.mark.parametrize("limit", [{"max_message_bytes": 100_000}, {"relay_bytes": 100_000}])
async def test_an_error_with_much_to_say_is_cut_and_stays_an_error(
    short_dir: Path, switchboard: SupervisorSwitchboard, limit: dict[str, int]
) -> None:
    async with supervised(short_dir, switchboard, **limit) as kernel:
        run = await kernel.run("print('y' * 90_000, flush=True)\nraise ValueError('x' * 9_000_000)")
        for msg_type in ("error", "execute_reply"):
            (content,) = (frame.content for frame in run.frames if frame.msg_type == msg_type)
            assert (content["ename"], content["evalue"][:3]) == ("ValueError", "xxx")
            assert len(json.dumps(content)) < 50_000
            assert "xxx" in content["traceback"][-1]
        assert gaps(kernel) > 9_000_000


async def test_a_raised_limit_lets_larger_messages_through_to_the_gateway(short_dir: Path) -> None:
    limits = Limits(image_bytes=20 << 20)
    switchboard = SupervisorSwitchboard(short_dir / "s", limits.message_bytes)
    told = {"max_message_bytes": limits.message_bytes, "spool_bytes": 2 * limits.message_bytes}
    async with supervised(short_dir, switchboard, **told) as kernel:
        size_bytes = limits.image_bytes * 4 // 3
        code = f"display({{'image/png': 'x' * {size_bytes}}}, raw=True)"
        (shown,) = (frame for frame in (await kernel.run(code)).frames if frame.msg_type == "display_data")
        assert len(shown.content["data"]["image/png"]) == size_bytes
        assert gaps(kernel) == 0


async def test_links_and_pipes_are_no_artifacts_and_odd_names_are(kernel: Supervised) -> None:
    code = """
import os
open(b"\\xff\\xfe.txt", "w").write("odd")
os.makedirs("a/b"); open("a/b/t.csv", "w").write("1,2")
os.symlink("/etc/passwd", "passwd.txt"); os.mkfifo("pipe.png"); os.symlink("/etc", "etc")
open("empty", "w").close()
"""
    run = await kernel.run(code)
    assert run.files() == {"\udcff\udcfe.txt": b"odd", "a/b/t.csv": b"1,2", "empty": b""}


async def test_files_over_a_limit_are_named_and_not_sent(short_dir: Path, switchboard: SupervisorSwitchboard) -> None:
    limits = {"file_bytes": 100, "file_count": 2, "image_bytes": 50, "image_count": 1}
    async with supervised(short_dir, switchboard, **limits) as kernel:
        sizes = {"a.txt": 101, "b.txt": 100, "c.txt": 1, "d.txt": 1, "e.png": 51, "f.png": 50, "g.png": 1}
        run = await kernel.run(f"for n, s in {json.dumps(sizes)}.items(): open(n, 'w').write('x' * s)")
        assert {name: len(data) for name, data in run.files().items()} == {"b.txt": 100, "c.txt": 1, "f.png": 50}
        skipped = {item["path"]: item["why"] for item in run.end.content["skipped"]}
        assert skipped == {"a.txt": "bytes", "d.txt": "count", "e.png": "bytes", "g.png": "count"}


async def test_a_large_file_comes_in_pieces_and_whole(kernel: Supervised) -> None:
    code = "import os, hashlib\ndata = os.urandom(5_000_000)\nopen('f', 'wb').write(data)\n"
    run = await kernel.run(f"{code}hashlib.sha256(data).hexdigest()")
    assert repr(hashlib.sha256(run.files()["f"]).hexdigest()) == run.value()
    assert run.types().count("artifact") == 5


async def test_a_request_may_ask_for_no_artifacts_and_the_next_one_gets_them(kernel: Supervised) -> None:
    run = await kernel.run("open('f', 'w').write('x')", cellblock={"artifacts": False})
    assert run.files() == {}
    assert (await kernel.run("pass")).files() == {"f": b"x"}


async def test_content_that_files_share_is_sent_once(short_dir: Path, switchboard: SupervisorSwitchboard) -> None:
    code = """
import os, shutil
open("0.bin", "wb").write(os.urandom(3_000_000))
for n in range(1, 30): os.link("0.bin", f"{n}.bin")
shutil.copy("0.bin", "copy.bin")
"""
    async with supervised(short_dir, switchboard, files_bytes=4 << 20) as kernel:
        run = await kernel.run(code)
        pieces = [message for message in run.frames if message.msg_type == "artifact"]
        assert sum(len(message.buffers[0]) for message in pieces) == 3_000_000
        copies = [message.content for message in pieces if "same_as" in message.content]
        assert {content["same_as"] for content in copies} == {"0.bin"}
        assert len(copies) == 30
        assert run.end.content["skipped"] == []


async def test_files_beyond_the_budget_of_a_run_are_named_and_not_sent(
    short_dir: Path, switchboard: SupervisorSwitchboard
) -> None:
    async with supervised(short_dir, switchboard, files_bytes=100) as kernel:
        run = await kernel.run("for n in range(4): open(f'{n}.txt', 'w').write(str(n) * 40)")
        assert set(run.files()) == {"0.txt", "1.txt"}
        assert [item["why"] for item in run.end.content["skipped"]] == ["total", "total"]
        assert run.end.content["usage"]["wall_ms"] > 0


# --- messages that are no cells ---------------------------------------------------------------------------------------


async def test_a_hello_names_the_last_message_that_has_arrived(kernel: Supervised) -> None:
    assert kernel.hellos[-1]["forwarded"] is None
    for channel, msg_type in (("shell", "kernel_info_request"), ("control", "kernel_info_request")):
        msg_id = kernel.send_message(channel, msg_type, {})
        await kernel.until(partial(_is_answered, kernel, msg_id))
        await kernel.run("pass")
        await kernel.reconnect()
        assert kernel.hellos[-1]["forwarded"] == msg_id
    await kernel.run("import os; os._exit(1)")
    await kernel.ready(generation=2)
    await kernel.reconnect()
    assert kernel.hellos[-1]["forwarded"] == msg_id


def _is_answered(kernel: Supervised, msg_id: str) -> bool:
    return any(frame.msg_type == "kernel_info_reply" and frame.parent_id == msg_id for frame in kernel.frames)


async def test_an_answer_reaches_the_question_that_it_is_for_and_no_other(kernel: Supervised) -> None:
    questions: list[str] = []
    take = kernel.take

    def note_question(frame: Frame) -> None:
        if frame.msg_type == "input_request":
            questions.append(frame.msg_id)
        take(frame)

    kernel.take = note_question  # type: ignore[method-assign]
    builder = RequestBuilder()

    def ask(code: str) -> str:
        msg_id = uuid4().hex
        kernel.send_frame(builder.execute(msg_id, code, allow_stdin=True))
        return msg_id

    def answer(value: str, question: str) -> None:
        kernel.send_frame(builder.input_reply(uuid4().hex, value, {QUESTION_ID: question}))

    first = ask("input()")
    await kernel.until(lambda: len(questions) == 1)
    await kernel.reconnect()
    kernel.interrupt(first)
    await kernel.end_of(first)
    second = ask("print(input(), input())")
    await kernel.until(lambda: len(questions) == 2)
    answer("stale", questions[0])
    answer("one", questions[1])
    await kernel.until(lambda: len(questions) == 3)
    answer("twice", questions[1])
    answer("two", questions[2])
    assert (await kernel.end_of(second)).text() == "one two\n"
