"""Whose word counts when a supervisor says that a kernel forked from outside differs from its sandbox."""

from __future__ import annotations

from kernel_line import Line


async def test_a_fresh_sandbox_speaks_for_all(line: Line) -> None:
    heard: list[str] = []
    line.kernel.on_fork_refused = heard.append
    line.greet(state="starting")
    line.say("fork_refused", why="it differs in\x1b[2J files")
    assert heard == [r"it differs in\x1b[2J files"]


async def test_a_sandbox_where_code_may_have_run_speaks_for_itself_alone(line: Line) -> None:
    heard: list[str] = []
    line.kernel.on_fork_refused = heard.append
    line.ready()
    line.say("state", state="starting", generation=2)
    line.say("fork_refused", why="it differs in limits")
    adopted = Line(adopted=True)
    adopted.kernel.on_fork_refused = heard.append
    adopted.greet(state="starting")
    adopted.say("fork_refused", why="it differs in limits")
    assert heard == []
    assert not line.link.closed
