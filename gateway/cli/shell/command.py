"""`cellblock shell`: a session as a prompt, with a history, completion from the kernel, and answers to `input()`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.connection import Address, connected_or_started, talk
from gateway.cli.options import OneOffConfigOption, OneOffOption, TokenOption, UrlOption
from gateway.cli.terminal import Screen, plain
from gateway.cli.waiting import saying_why

if TYPE_CHECKING:
    from gateway.cli.shell.input_lines import InputLines
    from gateway.client import AsyncClient, AsyncSession, Event

_LEAVE = ("exit", "quit", "exit()", "quit()")


def shell(
    session: Annotated[
        str | None,
        typer.Argument(metavar="[SESSION]", help="The session; without one, a new one that ends with the shell."),
    ] = None,
    *,
    language: Annotated[str | None, typer.Option(help="Of a new session: one of the gateway's languages.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave a new session to go on.")] = False,
    url: UrlOption = None,
    token: TokenOption = None,
    starts: OneOffOption = False,
    config: OneOffConfigOption = None,
) -> None:
    """Work in a session, line by line.

    Tab completes, Ctrl-C interrupts what runs, Ctrl-D leaves. Alt-Enter begins a new line. Without a terminal, each
    line of standard input is run.
    """
    if sys.stdin is None:
        raise typer.BadParameter("Standard input is closed.")

    async def conversation() -> None:
        async with connected_or_started(url, token, config, starts=starts) as (client, _):
            address = Address(client.url, client.token)
            async with AsyncExitStack() as stack:
                async with saying_why(client.url):
                    opening = client.session(session, keep=keep, language=language)
                    opened = await stack.enter_async_context(opening)
                await Shell(client, address, opened).run()

    talk(conversation())


class Shell:
    """One sitting. The mutable state: the number of the next cell, and the answer to `input()` that is read, if any."""

    def __init__(self, client: AsyncClient, address: Address, session: AsyncSession) -> None:
        from gateway.cli.shell.input_lines import InputLines
        from gateway.cli.shell.kernel_questions import KernelQuestions

        self._client = client
        self._address = address
        self._session = session
        self._questions = KernelQuestions(address, session.info.kernel_id, self._find_kernel)
        self._screen = Screen()
        self._lines = None if sys.stdin.isatty() else InputLines(sys.stdin)
        self._answer: asyncio.Future[str] | None = None
        self._next = session.info.runs + 1

    async def run(self) -> None:
        """Read and run cells until the end of the input."""
        if self._lines is None:
            sys.stderr.write(f"Session {self._session.session_id}. Ctrl-D leaves.\n")
        cells = self._typed() if self._lines is None else _all(self._lines)
        try:
            async for code in cells:
                if code.strip() in _LEAVE:
                    return
                if code.strip():
                    await self._run_cell(code)
        finally:
            self._questions.close()

    async def _typed(self) -> AsyncIterator[str]:
        from gateway.cli.shell.prompt import make_prompt

        prompt = make_prompt(self._questions, self._session.info.language)
        while True:
            try:
                yield await prompt.prompt_async(f"In [{self._next}]: ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return

    async def _find_kernel(self) -> str:
        return (await self._session.refresh()).kernel_id

    async def _run_cell(self, code: str) -> None:
        """Run one cell to its end; Ctrl-C interrupts it, and the session goes on."""
        from gateway.client import ClientError

        running = asyncio.ensure_future(self._show(code))
        with _interrupting(self._interrupt):
            try:
                await running
            except ClientError as error:
                if self._lines is not None:
                    raise
                self._screen.show("stderr", {"text": f"{error}\n"})

    async def _show(self, code: str) -> None:
        from gateway.cli.shell.live import LiveRun

        info = self._session.info
        live = LiveRun(self._client, self._address, info.session_id, info.language, self._ask)
        async with AsyncExitStack() as waiting:
            await waiting.enter_async_context(saying_why(self._client.url))
            async for event in live.events(code):
                await waiting.aclose()
                await self._show_event(event)

    async def _show_event(self, event: Event) -> None:
        from gateway.cli.run import show_made

        self._screen.show(event.type, event.fields)
        if event.type == "started" and event.fields.get("session_created"):
            self._questions.close()  # the session was made anew, and has another kernel
        if event.type == "end":
            self._next = (event.fields.get("execution_count") or self._next) + 1
            if event.fields["status"] not in ("ok", "error"):
                self._screen.show("stderr", {"text": f"{event.fields.get('error', '')}\n"})
            if event.fields.get("session_lost"):
                self._screen.show("stderr", {"text": "The variables are gone.\n"})
            await show_made(self._client.result_of(event), {})

    async def _ask(self, prompt: str, hidden: bool) -> str | None:  # noqa: FBT001 - live.Ask
        if self._lines is not None:
            answer = self._answer = asyncio.ensure_future(self._lines.next())
            try:
                await asyncio.wait([answer])
            finally:
                answer.cancel()
                self._answer = None
            if answer.cancelled():
                return None  # by Ctrl-C, which the code gets too
            if line := answer.result():
                return line.rstrip("\n")
        else:
            from prompt_toolkit import PromptSession

            with suppress(EOFError, KeyboardInterrupt):
                return await PromptSession[str]().prompt_async(plain(prompt), is_password=hidden)
        await self._session.interrupt()
        return None

    async def _interrupt(self) -> None:
        from gateway.client import ClientError

        if self._answer is not None:
            self._answer.cancel()
        with suppress(ClientError):
            await self._session.interrupt()


@contextmanager
def _interrupting(interrupt: Callable[[], Coroutine[None, None, None]]) -> Iterator[None]:
    """While code runs, Ctrl-C is for the code."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def on_signal() -> None:
        task = loop.create_task(interrupt())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    usual = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, usual)  # asyncio's own, which ends the shell


async def _all(lines: InputLines) -> AsyncIterator[str]:
    while line := await lines.next():
        yield line
