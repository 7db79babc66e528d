"""What a command waits for, said on standard error once it has waited for a moment.

On a terminal a spinner shows it with its details; elsewhere there is one plain line for each thing that is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from gateway.cli.terminal import plain

if TYPE_CHECKING:
    import httpx

Say = Callable[[str, str], None]
"""Takes what is waited for, as a sentence, and how far that is, or an empty text."""

_MOMENT_S = 2.0
_LOOK_S = 1.0
_ANSWER_S = 5.0


class Waiting:
    """The mutable state: what is waited for, whether the moment is over, and what was shown. Needs a running loop."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._what = self._detail = self._shown = ""
        self._status: Status | None = None
        self._is_over = False
        self._timer = asyncio.get_running_loop().call_later(_MOMENT_S, self._begin)

    def say(self, what: str, detail: str = "") -> None:
        """This is waited for now."""
        self._what, self._detail = plain(what), plain(detail)
        if self._is_over:
            self._show()

    def end(self) -> None:
        """Nothing is waited for any more."""
        self._timer.cancel()
        if self._status is not None:
            self._status.stop()

    def _begin(self) -> None:
        self._is_over = True
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._status.start()
        self._show()

    def _show(self) -> None:
        if self._status is not None:
            room = max(0, self._console.width - len(self._what) - 6)
            self._status.update(f"{escape(self._what)} [dim]{escape(self._detail[:room])}[/dim]")
        elif self._what and self._what != self._shown:
            self._shown = self._what
            self._console.print(f"cellblock: {self._what}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def saying(console: Console | None = None) -> Iterator[Say]:
    """Yield the function that says what is waited for in the block."""
    waiting = Waiting(console or Console(stderr=True))
    try:
        yield waiting.say
    finally:
        waiting.end()


@asynccontextmanager
async def saying_why(url: str) -> AsyncIterator[None]:
    """Say what keeps this gateway from running code, for as long as the block waits for it."""
    with saying() as say:
        asking = asyncio.create_task(_ask_why(url, say))
        try:
            yield
        finally:
            asking.cancel()
            await asyncio.wait([asking])


async def _ask_why(url: str, say: Say) -> None:
    import httpx

    async with probing(url) as http:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                reasons = await reasons_not_ready(http, url)
            except (httpx.HTTPError, ValueError):
                say(f"Waiting for the gateway at {url}, which does not answer.", "")
            else:
                say(" ".join(reasons) or "Waiting for the gateway, which is busy.", "")


def probing(url: str) -> httpx.AsyncClient:
    """A client for a few questions to the gateway at this address."""
    import httpx

    from gateway.client.calls import is_on_this_machine

    return httpx.AsyncClient(timeout=_ANSWER_S, trust_env=not is_on_this_machine(url))


async def reasons_not_ready(http: httpx.AsyncClient, url: str) -> list[str]:
    """Why a gateway could not run code now; empty when it could. Raises HTTPError, ValueError."""
    response = await http.get(f"{url}/readyz")
    if response.is_success:
        return []
    answer = response.json()
    reasons = answer.get("reasons") if isinstance(answer, dict) else None
    return [str(reason) for reason in reasons or ["The gateway is not ready."]]
