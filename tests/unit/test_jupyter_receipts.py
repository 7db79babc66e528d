"""When a Jupyter client is asked whether all has arrived: seldom, and not while it is likely to ask for something."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from doubles import until

from gateway.http.jupyter.receipts import Receipts
from sessions.jupyter.messages import ClientMessage, note, status
from sessions.jupyter.outbox import LIMIT_BYTES, RECEIPT_BYTES, RECEIPT_ITEMS, Outbox
from sessions.model import RunId

NEVER_S = 3600.0
SOON_S = 0.02


class Client:
    """An outbox, and the client's end, which keeps the pings."""

    def __init__(self, quiet_s: float) -> None:
        self.outbox = Outbox()
        self.pings: list[int] = []
        self.receipts = Receipts(self, lambda data: self.pings.append(int(data)), quiet_s)  # type: ignore[arg-type]

    @property
    def sent(self) -> int:
        return self.outbox.sent

    def confirm(self, number: int) -> None:
        self.outbox.confirm(number)

    async def send(self, message: ClientMessage, run_id: str | None = None) -> None:
        self.outbox.put(message, None if run_id is None else RunId(run_id))
        item = await self.outbox.get()
        assert isinstance(item, ClientMessage)
        self.receipts.note_sent(item)

    async def send_cell(self, run_id: str) -> None:
        for one in (status("busy", {}), note("out", {}), status("idle", {})):
            await self.send(one, run_id)

    @property
    def in_doubt(self) -> int:
        return len(self.outbox._unconfirmed)


@pytest_asyncio.fixture
async def patient() -> AsyncIterator[Client]:
    """For which no moment is long enough to be quiet."""
    client = Client(NEVER_S)
    yield client
    client.receipts.stop()


async def test_a_client_that_is_told_nothing_more_is_asked_once_for_all_of_it() -> None:
    client = Client(SOON_S)
    for run_id in "abc":
        await client.send_cell(run_id)
    await until(lambda: client.pings == [9])
    client.receipts.note_pong(b"9")
    assert client.in_doubt == 0
    await client.send_cell("d")
    await until(lambda: client.pings == [9, 12])
    assert client.in_doubt == 1


async def test_cells_one_after_the_other_are_not_asked_after_each_by_itself(patient: Client) -> None:
    for number in range(RECEIPT_ITEMS // 3):
        await patient.send_cell(str(number))
    assert patient.pings == []
    await patient.send_cell("last")
    assert patient.pings == [RECEIPT_ITEMS]


async def test_a_client_that_has_been_busy_for_a_while_is_asked_when_its_cell_begins() -> None:
    client = Client(NEVER_S)
    await client.send_cell("a")
    client.receipts._quiet_s = 0.0  # that while is over
    await client.send(note("out", {}), "b")
    await client.send(status("idle", {}), "b")
    assert client.pings == []
    await client.send(status("busy", {}), "c")
    assert client.pings == [6]
    client.receipts.stop()


async def test_a_client_is_asked_before_its_outbox_holds_too_much_back(patient: Client) -> None:
    large = note("x" * (RECEIPT_BYTES // 3), {})
    for _ in range(3):
        await patient.send(large)
    assert patient.pings == [3]
    for _ in range(6):
        await patient.send(large)
    assert patient.pings == [3, 6, 9]
    assert patient.outbox._unconfirmed_bytes < LIMIT_BYTES
    patient.receipts.note_pong(b"3")
    assert patient.in_doubt == 6
    patient.receipts.note_pong(b"9")
    assert patient.in_doubt == 0


async def test_the_messages_of_a_replay_are_asked_after_at_its_end() -> None:
    client = Client(SOON_S)
    client.outbox.replay(RunId("r"))
    await client.outbox.get()
    for _ in range(2 * RECEIPT_ITEMS):
        client.receipts.note_sent(note("again", {}), is_of_replay=True)
    assert client.receipts._timer is None
    client.outbox.replay_sent(RunId("r"))
    client.receipts.note_sent(None)
    await until(lambda: client.pings == [1])


async def test_what_waits_for_room_in_memory_is_not_asked_after_yet() -> None:
    client = Client(SOON_S)
    await client.send(note("one", {}))
    client.outbox.put(note("two", {}))
    await client.outbox.get()  # and it is not written yet
    await until(lambda: bool(client.pings))
    client.receipts.note_pong(str(client.pings[-1]).encode())
    assert client.in_doubt == 1
    client.receipts.note_sent(note("two", {}))
    await until(lambda: client.pings == [1, 2])


async def test_what_is_to_go_ahead_of_a_replay_is_asked_after_once_it_is_written(patient: Client) -> None:
    patient.outbox.replay(RunId("r"))
    await patient.outbox.get()
    patient.outbox.put(note("ahead", {}))
    ahead = await patient.outbox.get_ahead()
    patient.receipts.note_sent(note("x" * RECEIPT_BYTES, {}), is_of_replay=True)
    assert patient.pings == []
    patient.receipts.note_sent(ahead)
    patient.receipts.note_sent(note("x" * RECEIPT_BYTES, {}), is_of_replay=True)
    assert patient.pings == [1]


@pytest.mark.parametrize("data", [b"", b"x", b"-1", b"\xb2", b"2", b"9" * 125])
async def test_a_pong_without_its_ping_confirms_nothing(patient: Client, data: Any) -> None:
    await patient.send(note("one", {}))
    await patient.send(note("two", {}))
    patient.receipts.note_pong(data)
    assert patient.in_doubt == 2


async def test_nothing_is_asked_of_a_connection_that_is_over() -> None:
    client = Client(SOON_S)
    await client.send_cell("a")
    client.receipts.stop()
    other = Client(SOON_S)
    await other.send_cell("a")
    await until(lambda: other.pings == [3])
    assert client.pings == []
