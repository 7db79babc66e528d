"""`kill -9` of the gateway at random moments, again and again, with live sessions in real containers; then count.

`make crash-test ROUNDS=500`, or the test beside this. Agents keep running code meanwhile: numbered, flushed lines in
loops. Every answer is checked against what the code must have printed, and the session's own count of its runs against
the agent's.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from crash_rig import Client, CrashableGateway, check_events

LINES = 120
PAUSE_S = 0.01
LOOP = f"""
import time
count = globals().get('count', 0) + 1
for line in range({LINES}):
    print(f'{{count}}.{{line}}', flush=True)
    time.sleep({PAUSE_S})
"""
SESSIONS = 3
LEAST_LONGEST_LIFE_S = 2.0
SHARE_KILLED_WHILE_STARTING = 0.2
LONGEST_START_S = 2.0


@dataclass
class Report:
    """What happened. Everything after `answers` must be 0."""

    rounds: int = 0
    answers: int = 0
    streamed: int = 0
    resumed_streams: int = 0
    sessions_lost: int = 0
    runs_lost: int = 0
    duplicated: int = 0
    missing_lines: int = 0
    broken_sequences: int = 0
    complaints: list[str] = field(default_factory=list)

    def is_clean(self) -> bool:
        """Whether nothing was lost, repeated or out of order."""
        broken = self.sessions_lost + self.runs_lost + self.duplicated + self.missing_lines + self.broken_sequences
        return broken == 0 and not self.complaints

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds of kill -9: {self.answers} runs answered, {self.streamed} of them streamed "
            f"({self.resumed_streams} streams went on after a crash); sessions lost {self.sessions_lost}, runs lost "
            f"{self.runs_lost}, duplicated {self.duplicated}, with a missing or misplaced line {self.missing_lines}, "
            f"with a gap or repeat in their events {self.broken_sequences}"
        )


class Agent:
    """Runs one loop after the other, in a session of its own or outside of any. `done` counts the answers."""

    def __init__(self, name: str, url: str, report: Report, randomness: random.Random, *, in_session: bool) -> None:
        self.name = name
        self.done = 0
        self._client = Client(url)
        self._report = report
        self._random = randomness
        self._in_session = in_session
        self._fields = {"session_id": name} if in_session else {}

    async def keep_running(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; then check what the gateway has on record."""
        try:
            while not stop.is_set():
                await self._run_once()
            await self._check_record()
        finally:
            await self._client.close()

    async def _run_once(self) -> None:
        key = f"{self.name}-{self.done}"
        before = self._client.transport_errors
        if self._random.random() < 0.5:
            answer, events = await self._client.run_streaming(key, LOOP, **self._fields)
            self._report.streamed += 1
            self._report.resumed_streams += self._client.transport_errors > before
        else:
            answer = await self._client.run(key, LOOP, **self._fields)
            events = await self._client.events(answer["run_id"])
        self.done += 1
        self._report.answers += 1
        self._check(answer, events)

    def _check(self, answer: dict[str, object], events: list[dict[str, object]]) -> None:
        count = self.done if self._in_session else 1
        expected = [f"{count}.{line}" for line in range(LINES)]
        lines = str(answer["output"]).split()
        report = self._report
        if answer["status"] != "ok":
            report.runs_lost += 1
            report.complaints.append(f"{self.name}: {answer['status']}: {answer.get('error')}")
        elif answer.get("session_lost") or answer.get("session_created", False) != (self._in_session and count == 1):
            report.sessions_lost += 1
            report.complaints.append(f"{self.name}: run {count} says that the session was lost or made")
        elif lines and lines[0].startswith(f"{count + 1}."):
            report.duplicated += 1
            report.complaints.append(f"{self.name}: run {count} was run twice")
        elif lines != expected:
            report.missing_lines += 1
            report.complaints.append(f"{self.name}: run {count} has {len(lines)} lines: {lines[:3]} … {lines[-3:]}")
        try:
            check_events(events, answer)
        except AssertionError as error:
            report.broken_sequences += 1
            report.complaints.append(f"{self.name}: run {count}: {error}")

    async def _check_record(self) -> None:
        """There is one run on record for each that was asked for, and no more."""
        if not self._in_session:
            return
        response = await self._client.ask("GET", f"/runs?session_id={self.name}&limit=500")
        recorded = len(response.json()["runs"])
        if recorded != min(500, self.done):
            self._report.duplicated += 1
            self._report.complaints.append(f"{self.name}: {self.done} runs asked for, {recorded} on record")
        session = (await self._client.ask("GET", f"/sessions/{self.name}")).json()
        if session["runs"] != self.done:
            self._report.sessions_lost += 1
            self._report.complaints.append(f"{self.name}: {self.done} runs, but the session says {session['runs']}")


async def crash_again_and_again(gateway: CrashableGateway, rounds: int, seed: int) -> Report:
    """Kill and restart `rounds` times under working agents; returns what came of it."""
    randomness = random.Random(seed)  # noqa: S311 - no secret
    report = Report()
    stop = asyncio.Event()
    begun_s = time.monotonic()
    await gateway.start()
    await gateway.wait_until_ready()
    # Long enough to get something done now and then, on a slow machine too.
    longest_life_s = max(LEAST_LONGEST_LIFE_S, time.monotonic() - begun_s)
    agents = [
        *(Agent(f"s{n}", gateway.url, report, randomness, in_session=True) for n in range(SESSIONS)),
        Agent("single", gateway.url, report, randomness, in_session=False),
    ]
    working = [asyncio.ensure_future(agent.keep_running(stop)) for agent in agents]
    while report.rounds < rounds:
        await asyncio.sleep(randomness.uniform(0.0, longest_life_s))
        if failed := [task for task in working if task.done()]:
            failed[0].result()
        gateway.kill()
        report.rounds += 1
        if randomness.random() < SHARE_KILLED_WHILE_STARTING:
            gateway.launch()
            await asyncio.sleep(randomness.uniform(0.0, LONGEST_START_S))
            gateway.kill()
        await gateway.start()
        if report.rounds % 10 == 0:
            elapsed_s = time.monotonic() - begun_s
            print(f"round {report.rounds} of {rounds}, {report.answers} runs answered, {elapsed_s:.0f} s", flush=True)  # noqa: T201
    stop.set()
    await asyncio.gather(*working)
    return report


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--engine", default="docker", choices=["docker", "process"])
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)  # noqa: T201
    directory = Path(tempfile.mkdtemp(prefix="cb-"))
    gateway = CrashableGateway(directory, options.engine, CELLBLOCK_POOL_MAX="8")
    try:
        report = asyncio.run(crash_again_and_again(gateway, options.rounds, options.seed))
    finally:
        gateway.stop()
    print(report)  # noqa: T201
    for complaint in report.complaints:
        print(" ", complaint)  # noqa: T201
    if report.is_clean():
        shutil.rmtree(directory)
    return 0 if report.is_clean() else 1


if __name__ == "__main__":
    sys.exit(main())
