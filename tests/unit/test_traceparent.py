"""The header `traceparent`: which are taken, and what the lines of the log about a run say of it."""

from __future__ import annotations

import pytest
from doubles import until
from structlog.testing import capture_logs
from workbench import Bench, Benches, come_back, crash, ended, unavailable

from gateway.http.parse.traceparent import traceparent_of
from sessions.model import RunId, SessionId, trace_fields

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        (TRACEPARENT, TRACEPARENT),
        (f"00-{TRACE}-{SPAN}-00", f"00-{TRACE}-{SPAN}-00"),
        (f"00-{TRACE}-{SPAN}-ff", f"00-{TRACE}-{SPAN}-ff"),
        (f"cc-{TRACE}-{SPAN}-01", TRACEPARENT),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", TRACEPARENT),
        (None, None),
        ("", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"00-{TRACE}-{SPAN}-01-", None),
        (f"cc-{TRACE}-{SPAN}-01.more", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"0-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE[1:]}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}x-01", None),
        (f" {TRACEPARENT}", None),
        (f"{TRACEPARENT}\n", None),
        (f"{TRACEPARENT},{TRACEPARENT}", None),
        ("00-" + 32 * "\u0664" + f"-{SPAN}-01", None),
    ],
)
def test_a_header_counts_when_it_is_as_the_standard_wants_it(header: str | None, taken: str | None) -> None:
    assert traceparent_of(header) == taken


def test_the_log_has_the_id_of_the_trace() -> None:
    assert trace_fields(TRACEPARENT) == {"trace_id": TRACE}
    assert trace_fields(None) == {}


@pytest.mark.parametrize(("traceparent", "expected"), [(TRACEPARENT, TRACE), (None, None)])
async def test_a_line_about_a_run_has_its_trace(bench: Bench, traceparent: str | None, expected: str | None) -> None:
    run_id = await bench.record(traceparent=traceparent, session_id=SessionId("s"))
    kernel = await bench.sent()
    with capture_logs() as logs:
        with unavailable(bench.store, "finish_run"):
            kernel.end("1\n")
            await until(lambda: any(line["event"] == "run_not_written" for line in logs))
        await until(lambda: bench.has_ended(run_id))
    (line,) = [line for line in logs if line["event"] == "run_not_written"]
    assert (line["run_id"], line.get("trace_id")) == (run_id, expected)


async def test_the_next_gateway_knows_the_trace(benches: Benches) -> None:
    run_id = await benches[0].record(traceparent=TRACEPARENT)
    kernel = await benches[0].sent()
    second = await crash(benches)
    come_back(second, kernel)
    with capture_logs() as logs:
        with unavailable(second.store, "finish_run"):
            kernel.end("1\n")
            await until(lambda: any(line["event"] == "run_not_written" for line in logs))
        await ended(second, RunId(run_id))
    assert {line["trace_id"] for line in logs if line.get("run_id") == run_id} == {TRACE}
    assert second.stored(run_id).run.traceparent == TRACEPARENT


async def test_a_session_gives_the_trace_of_one_run_to_no_other(bench: Bench) -> None:
    given = {"first": TRACEPARENT, "second": None}
    runs = {code: await bench.record(code, traceparent=given[code], session_id=SessionId("s")) for code in given}
    with capture_logs() as logs:
        for code, run_id in runs.items():
            kernel = await bench.sent(code)
            with unavailable(bench.store, "finish_run"):
                kernel.end()
                await until(lambda run_id=run_id: any(line.get("run_id") == run_id for line in logs))  # type: ignore[misc]
            await until(lambda run_id=run_id: bench.has_ended(run_id))  # type: ignore[misc]
    traces = {line["run_id"]: line.get("trace_id") for line in logs if "run_id" in line}
    assert traces == {runs["first"]: TRACE, runs["second"]: None}
