"""Whatever a line does to it, a Jupyter client ends up with every run's text once, and in order."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_talk import content, message

from sessions.jupyter.message_queue import Replay
from sessions.jupyter.messages import ClientMessage
from sessions.jupyter.outbox import Outbox
from sessions.model import RunId

KIB = 1024


class Reader:
    """A client that honours `clear_output`, at an outbox of runs whose events all are kept.

    A replay clears, then sends all events so far, and those that come until it ends.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.outbox = Outbox(limit_bytes)
        self.events: dict[RunId, list[str]] = {}
        self.shown: dict[RunId, list[str]] = {}
        self.free: list[str] = []
        self._replaying: RunId | None = None
        self._on_the_wire: list[tuple[int, RunId | None, list[str], bool]] = []
        self._count = 0

    def put(self, run_id: RunId | None) -> None:
        self._count += 1
        text = str(self._count)
        if run_id is not None:
            self.events.setdefault(run_id, []).append(text)
        self.outbox.put(message("stream", {"text": text, "padding": "x" * 500}, parent_id=run_id or ""), run_id)

    async def take(self) -> None:
        """Take the next message; or finish the replay under way, with what has come meanwhile."""
        if self._replaying is not None:
            run_id, self._replaying = self._replaying, None
            self.outbox.replay_sent(run_id)
            self._on_the_wire.append((self.outbox.sent, run_id, [*self.events.get(run_id, [])], True))
            return
        try:
            item = await asyncio.wait_for(self.outbox.get(), 0.001)
        except TimeoutError:
            return
        if isinstance(item, Replay):
            self._replaying = item.run_id
        elif isinstance(item, ClientMessage):
            run_id = RunId(item.parent_id) if item.parent_id else None
            self._on_the_wire.append((self.outbox.sent, run_id, [content(item)["text"]], False))

    async def take_ahead(self) -> None:
        """While a replay is under way: take what goes ahead of its rest."""
        if self._replaying is not None:
            with suppress(TimeoutError):
                item = await asyncio.wait_for(self.outbox.get_ahead(), 0.001)
                assert item.parent_id == ""
                self._on_the_wire.append((self.outbox.sent, None, [content(item)["text"]], False))

    def arrive(self, count: int) -> None:
        """So much of what was sent arrives; the client confirms some of it."""
        for _, run_id, texts, is_whole in self._on_the_wire[:count]:
            shown = self.free if run_id is None else self.shown.setdefault(run_id, [])
            shown[:] = texts if is_whole else shown + texts
        if self._on_the_wire[:count]:
            self.outbox.confirm(self._on_the_wire[:count][-1][0])
        del self._on_the_wire[:count]

    def vanish(self, arrived: int) -> None:
        """The connection breaks: some arrived that will not be confirmed, the rest did not."""
        for _, run_id, texts, is_whole in self._on_the_wire[:arrived]:
            if run_id is not None:
                self.shown[run_id] = texts if is_whole else [*self.shown.get(run_id, []), *texts]
        if self._replaying is not None:  # the beginning of the replay may have come
            self.shown[self._replaying] = self.events.get(self._replaying, [])[:arrived]
        self._on_the_wire.clear()
        self._replaying = None
        self.outbox.requeue_unconfirmed()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([None, "a", "b", "c"])),
        st.tuples(st.sampled_from(["take", "ahead"]), st.just(0)),
        st.tuples(st.just("arrive"), st.integers(1, 3)),
        st.tuples(st.just("vanish"), st.integers(0, 3)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps, limit_kib=st.sampled_from([4, 8, 1000]))
def test_a_client_ends_up_with_every_runs_text_once_and_in_order(
    steps: list[tuple[str, str | int | None]], limit_kib: int
) -> None:
    async def play() -> None:
        reader = Reader(limit_kib * KIB)
        for step, given_ in steps:
            match step:
                case "put":
                    reader.put(None if given_ is None else RunId(str(given_)))
                case "take":
                    await reader.take()
                case "ahead":
                    await reader.take_ahead()
                case "arrive":
                    reader.arrive(int(given_ or 0))
                case "vanish":
                    reader.vanish(int(given_ or 0))
        while reader.outbox._queue or reader._replaying is not None:
            await reader.take()
            reader.arrive(1000)
        reader.arrive(1000)
        assert {run_id: shown for run_id, shown in reader.shown.items() if shown} == reader.events
        if limit_kib == 1000:  # nothing was cut: of what belongs to no run, all has come, in order
            numbers = [int(text) for text in reader.free]
            assert numbers == sorted(set(numbers))

    asyncio.run(play())
