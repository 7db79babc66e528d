"""The shell's prompt: history, completion, and an Enter that goes on with code that is not whole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers import find_lexer_class_by_name
from pygments.util import ClassNotFound

from gateway.cli.shell.kernel_questions import KernelQuestions


class KernelCompleter(Completer):
    """Asks the kernel."""

    def __init__(self, questions: KernelQuestions) -> None:
        self._questions = questions

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Nothing: prompts here are asynchronous."""
        del document, complete_event
        return ()

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """What may stand from the beginning of the word on."""
        del complete_event
        start, matches = await self._questions.completions(document.text, document.cursor_position)
        for match in matches:
            yield Completion(match, start_position=start - document.cursor_position)


def make_prompt(questions: KernelQuestions, language: str) -> PromptSession[str]:
    """A prompt whose history is kept from one shell to the next."""
    try:
        lexer = PygmentsLexer(find_lexer_class_by_name(language))
    except ClassNotFound:
        lexer = None
    return PromptSession[str](
        history=_history(),
        completer=KernelCompleter(questions),
        complete_while_typing=False,
        lexer=lexer,
        multiline=True,
        prompt_continuation=lambda width, *_: "...: ".rjust(width),
        key_bindings=_bindings(questions),
        enable_open_in_editor=True,
    )


def _history() -> History:
    try:
        directory = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "cellblock"
        file = directory / "history"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except (OSError, RuntimeError):  # there is no home
        return InMemoryHistory()
    return FileHistory(str(file))


def _bindings(questions: KernelQuestions) -> KeyBindings:
    bindings = KeyBindings()
    one_at_a_time = asyncio.Lock()

    @bindings.add("enter")
    async def _enter(event: KeyPressEvent) -> None:
        """Run what is whole; go on with what is not. An empty line ends it in any case."""
        async with one_at_a_time:
            buffer = event.current_buffer
            last_line = buffer.text.rpartition("\n")[2]
            indent = await questions.indent(buffer.text) if last_line.strip() else None
            if indent is None:
                buffer.validate_and_handle()
            else:
                buffer.insert_text(f"\n{indent}")

    @bindings.add("escape", "enter")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
