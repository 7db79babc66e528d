"""The client for asyncio: what blocking.py has, with `await`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from gateway.client import calls
from gateway.client.calls import Ask, RunArguments, SessionArguments
from gateway.client.cursors import BatchCursor, EventCursor
from gateway.client.errors import ClientError
from gateway.client.results import (
    BatchAnswer,
    Event,
    FileInfo,
    RunResult,
    RunSummary,
    SessionInfo,
    file_info,
    run_result,
    run_summary,
    session_info,
)
from gateway.client.transport import AsyncTransport

_UNDO_S = 2.0

Result = RunResult[Awaitable[bytes]]


class AsyncClient:
    """A gateway, to run code on. It may be used by several tasks at once.

    Every call is repeated while the gateway is away or busy, for `patience_s` seconds without any success; code runs
    once all the same. All raise ClientError in its kinds. Without arguments the address and the token are those of the
    environment (CELLBLOCK_URL, CELLBLOCK_TOKEN), or the gateway of this machine.
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        *,
        patience_s: float = calls.PATIENCE_S,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """`http` is used instead of a client of its own, with its proxies and certificates, and is closed with this.

        Raises ValueError for what is no URL.
        """
        origin = calls.Origin(base_url, token)
        http = http or httpx.AsyncClient(trust_env=not calls.is_on_this_machine(origin.url))
        self._transport = AsyncTransport(origin, patience_s, http)

    @property
    def url(self) -> str:
        """The gateway's address."""
        return self._transport.origin.url

    @property
    def token(self) -> str:
        """What it is sent; empty where there is none."""
        return self._transport.origin.token

    def __repr__(self) -> str:
        return f"<AsyncClient {self._transport.origin.url}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections. Sessions and runs go on."""
        await self._transport.http.aclose()

    # --- runs ---------------------------------------------------------------------------------------------------------

    async def run(self, code: str, *, session_id: str | None = None, **arguments: Unpack[RunArguments]) -> Result:
        """Run code to its end. An error in it is in the result, and raises nothing."""
        ask = calls.run_ask(calls.run_fields(code, session_id, **arguments))
        return self._result(await self._transport.do(calls.run(ask, self._transport.patience())))

    def stream(
        self, code: str, *, session_id: str | None = None, **arguments: Unpack[RunArguments]
    ) -> AsyncGenerator[Event, None]:
        """The events of a run as they come, each once, over a broken connection too. The last one is of type `end`.

        Who stops reading does not stop the run; `aclosing(…)` frees the connection at once.
        """
        ask = calls.streamed(calls.run_ask(calls.run_fields(code, session_id, **arguments)))
        return self._transport.items(EventCursor(ask, self._transport.patience()))

    def events(self, run_id: str, after: int = 0) -> AsyncGenerator[Event, None]:
        """The events of a run that has begun, from the one behind number `after` to its end."""
        ask = calls.events_ask(run_id, after)
        return self._transport.items(EventCursor(ask, self._transport.patience(), run_id=run_id, after=after))

    def result_of(self, end: Event) -> Result:
        """The whole result, which an `end` event has."""
        return self._result({"run_id": end.run_id, **end.fields})

    def batch(self, runs: Iterable[str | Mapping[str, Any]]) -> AsyncGenerator[BatchAnswer[Awaitable[bytes]], None]:
        """Run many, and have each answer as it ends. An item is code, or the arguments of `run()` with `code`.

        An item that is refused has an `error` and fails alone. Over a broken connection none runs twice.
        """
        items = [calls.run_fields(run) if isinstance(run, str) else calls.batch_fields(**run) for run in runs]
        return self._transport.items(BatchCursor(items, self._transport.patience(), self._transport.read))

    async def get_run(self, run_id: str) -> Result:
        """A run as it is now, live or ended."""
        return self._result((await self._transport.ask(Ask("GET", f"/runs/{calls.segment(run_id)}"))).json())

    async def runs(
        self,
        *,
        session_id: str | None = None,
        status: str | None = None,
        limit: int | None = None,
        before: str | None = None,
    ) -> list[RunSummary]:
        """Runs, newest first; `before` is the id of the run that the page before ended with."""
        given = {"session_id": session_id, "status": status, "limit": limit, "before": before}
        params = {name: str(value) for name, value in given.items() if value is not None}
        return [
            run_summary(run) for run in (await self._transport.ask(Ask("GET", "/runs", params=params))).json()["runs"]
        ]

    async def cancel(self, run_id: str) -> None:
        """Have a run end as `cancelled`; one that has ended stays as it is."""
        await self._transport.ask(Ask("POST", f"/runs/{calls.segment(run_id)}/cancel"))

    # --- sessions -----------------------------------------------------------------------------------------------------

    def session(
        self, session_id: str | None = None, *, keep: bool = False, **arguments: Unpack[SessionArguments]
    ) -> OpeningSession:
        """Variables and files that stay from one run to the next: `async with client.session() as session: …`.

        A session that is there under this id is used. One that was made ends with the block, unless it is to `keep`.
        Without a block: `session = await client.session()`.
        """

        async def opened() -> AsyncSession:
            call = calls.open_session(session_id, arguments, self._transport.patience())
            created, answer = await self._transport.do(call)
            return AsyncSession(self, self._transport, session_info(answer), ends_with_block=created and not keep)

        return OpeningSession(opened)

    async def get_session(self, session_id: str) -> SessionInfo:
        """A session as it is now."""
        return session_info((await self._transport.ask(Ask("GET", f"/sessions/{calls.segment(session_id)}"))).json())

    async def attach(self, session_id: str) -> AsyncSession:
        """A session that is there, to work with; no block ends it."""
        return AsyncSession(self, self._transport, await self.get_session(session_id), ends_with_block=False)

    async def sessions(self) -> list[SessionInfo]:
        """The sessions that there are, oldest first."""
        return [
            session_info(session) for session in (await self._transport.ask(Ask("GET", "/sessions"))).json()["sessions"]
        ]

    def _result(self, answer: Mapping[str, Any]) -> Result:
        return run_result(answer, self._transport.read)


class OpeningSession:
    """A session to be: awaited, or entered, it is made. The mutable state is the session of the block."""

    def __init__(self, opened: Callable[[], Coroutine[Any, Any, AsyncSession]]) -> None:
        self._opened = opened
        self._session: AsyncSession | None = None

    def __await__(self) -> Generator[Any, Any, AsyncSession]:
        return self._opened().__await__()

    async def __aenter__(self) -> AsyncSession:
        opening = asyncio.ensure_future(self._opened())
        try:
            self._session = await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(ClientError, TimeoutError):
                async with asyncio.timeout(_UNDO_S), await opening:
                    pass  # it may be there already, and would stay
            raise
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.__aexit__(kind, error, traceback)


class AsyncSession:
    """A kernel that is kept. `info` is what the gateway said of it last."""

    def __init__(
        self, client: AsyncClient, transport: AsyncTransport, info: SessionInfo, *, ends_with_block: bool
    ) -> None:
        self._client = client
        self._transport = transport
        self._ends_with_block = ends_with_block
        self.info = info
        self.session_id = info.session_id
        self.files = AsyncSessionFiles(transport, info.session_id)

    def __repr__(self) -> str:
        return f"<AsyncSession {self.session_id} {self.info.state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ends_with_block:
            await self.end()

    async def run(self, code: str, **arguments: Unpack[RunArguments]) -> Result:
        """Run code in it, as `AsyncClient.run` does."""
        return await self._client.run(code, session_id=self.session_id, **arguments)

    def stream(self, code: str, **arguments: Unpack[RunArguments]) -> AsyncGenerator[Event, None]:
        """The events of code that runs in it, as `AsyncClient.stream` gives them."""
        return self._client.stream(code, session_id=self.session_id, **arguments)

    async def refresh(self) -> SessionInfo:
        """Ask how it is now."""
        return await self._info(Ask("GET", self._path))

    async def renew(self, *, idle_timeout: float | None = None, max_lifetime: float | None = None) -> SessionInfo:
        """Restart its idle time, and change the time-outs that are given, in seconds."""
        given = {"idle_timeout": idle_timeout, "max_lifetime": max_lifetime}
        body = {name: value for name, value in given.items() if value is not None}
        return await self._info(Ask("PATCH", self._path, body))

    async def interrupt(self) -> None:
        """Interrupt what runs in it, as Ctrl-C does."""
        await self._transport.ask(Ask("POST", f"{self._path}/interrupt", is_repeatable=False))

    async def restart(self) -> SessionInfo:
        """Start a fresh kernel: variables are gone, files stay, what runs is cancelled."""
        return await self._info(Ask("POST", f"{self._path}/restart", is_repeatable=False))

    async def notebook(self) -> dict[str, Any]:
        """Its runs as a notebook (nbformat 4.5), to be written as `.ipynb`."""
        notebook: dict[str, Any] = (await self._transport.ask(Ask("GET", f"{self._path}/notebook"))).json()
        return notebook

    async def end(self) -> None:
        """End it, with its variables and files."""
        await self._transport.do(calls.gone(Ask("DELETE", self._path), self._transport.patience()))

    @property
    def _path(self) -> str:
        return f"/sessions/{calls.segment(self.session_id)}"

    async def _info(self, ask: Ask) -> SessionInfo:
        self.info = session_info((await self._transport.ask(ask)).json())
        return self.info


class AsyncSessionFiles:
    """The files below a session's working directory, by their path relative to it."""

    def __init__(self, transport: AsyncTransport, session_id: str) -> None:
        self._transport = transport
        self._session_id = session_id

    async def list(self) -> list[FileInfo]:
        """All of them, by path."""
        answer = await self._transport.ask(Ask("GET", f"/sessions/{calls.segment(self._session_id)}/files"))
        return [file_info(file) for file in answer.json()["files"]]

    async def read(self, path: str) -> bytes:
        """The content of one."""
        return (await self._transport.ask(Ask("GET", self._path(path)))).content

    async def write(self, path: str, content: bytes | str) -> None:
        """Write one, with the directories that it needs; text as UTF-8."""
        data = content.encode() if isinstance(content, str) else content
        await self._transport.ask(Ask("PUT", self._path(path), content=data))

    async def upload(self, local: str | Path, path: str | None = None) -> None:
        """Write a file of this machine, under its own name unless another is given."""
        await self.write(path or Path(local).name, await asyncio.to_thread(Path(local).read_bytes))

    async def download(self, path: str, local: str | Path) -> None:
        """Write one to a file of this machine."""
        await asyncio.to_thread(Path(local).write_bytes, await self.read(path))

    async def remove(self, path: str) -> None:
        """Remove one."""
        await self._transport.do(calls.gone(Ask("DELETE", self._path(path)), self._transport.patience()))

    def _path(self, path: str) -> str:
        return calls.file_path(self._session_id, path)
