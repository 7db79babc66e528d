"""The histograms of a run's stages, and that a run passes through all of them."""

from __future__ import annotations

import pytest
from workbench import Bench

from sessions.measures.stages import BOUNDS_S, Histogram, RunTrace, Stage, Stages
from sessions.model import SessionId


def test_a_duration_is_counted_in_the_first_bucket_that_has_room_for_it() -> None:
    histogram = Histogram()
    for duration_s in (0.0, BOUNDS_S[0], BOUNDS_S[0] * 1.01, BOUNDS_S[-1], BOUNDS_S[-1] * 2):
        histogram.observe(duration_s)
    assert (histogram.counts[0], histogram.counts[1]) == (2, 1)
    assert histogram.counts[-2:] == [1, 1]
    assert histogram.count == 5
    assert histogram.sum_s == pytest.approx(BOUNDS_S[0] * 2.01 + BOUNDS_S[-1] * 3)


def test_a_quantile_lies_in_the_bucket_that_has_it() -> None:
    histogram = Histogram()
    assert histogram.quantile_s(0.5) == 0
    for _ in range(90):
        histogram.observe(0.0012)
    for _ in range(10):
        histogram.observe(0.02)
    assert 0.001 < histogram.quantile_s(0.5) <= 0.0015
    assert 0.015 < histogram.quantile_s(0.95) <= 0.025
    assert histogram.quantile_s(1.0) == 0.025


def test_only_stages_that_were_passed_are_shown() -> None:
    stages = Stages()
    trace = RunTrace(stages)
    trace.end(Stage.ADMISSION)
    trace.end_frames()
    shown = stages.as_json()
    assert list(shown) == ["admission", "frame_in", "fold"]
    assert shown["admission"]["count"] == sum(shown["admission"]["counts"]) == 1


@pytest.mark.parametrize("session_id", [None, SessionId("s")])
async def test_a_run_passes_every_stage_of_the_engine_once(bench: Bench, session_id: SessionId | None) -> None:
    running = bench.begin() if session_id is None else bench.begin(session_id=session_id)
    (await bench.sent()).end("1\n")
    assert (await running).output == "1\n"
    service = bench.service
    passed = {stage: histogram.count for stage, histogram in service.stages.histograms.items() if histogram.count}
    assert passed == dict.fromkeys(set(Stage) - {Stage.HANDLER, Stage.ANSWER}, 1)
    stages = service.stages
    parts = {stage: stages.histograms[stage].sum_s for stage in set(passed) - {Stage.FOLD}}
    assert (stages.whole.count, stages.own.count) == (1, 1)
    assert stages.whole.sum_s == pytest.approx(sum(parts.values()))
    waited = (Stage.CLAIM, Stage.QUEUE, Stage.KERNEL_BUSY, Stage.IDLE, Stage.FRAME_IN)
    assert stages.own.sum_s == pytest.approx(stages.whole.sum_s - sum(parts[stage] for stage in waited))
