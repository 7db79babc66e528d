"""What a run produced, on a terminal or in a pipe.

Code in a sandbox may print what makes a terminal do things: set its title, write to the clipboard, answer as if typed.
On a terminal, colours pass and other escape sequences do not; a pipe gets all bytes as they are.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, TextIO

_ESCAPES = re.compile(
    r"(?P<colour>\x1b\[[0-9;:]*m)"
    r"|\x1b\[[0-?]*[ -/]*[@-~]"  # other control sequences
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\x9c|$)"  # strings for the terminal: title, clipboard, and so on
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x06\x0e-\x1a\x1c-\x1f\x7f\x80-\x9f]",
    re.DOTALL,
)
_KITTY_PIECE = 4096


def plain(text: str) -> str:
    """Text of a run without what a terminal would obey, colours excepted."""
    return _ESCAPES.sub(lambda found: found["colour"] or "", text)


class Screen:
    """Writes the events of runs: output to standard output, and what is not output to standard error."""

    def __init__(self, output: TextIO | None = None, errors: TextIO | None = None) -> None:
        self._output = output or sys.stdout
        self._errors = errors or sys.stderr

    def show(self, event_type: str, fields: Mapping[str, Any]) -> None:
        """Show one event; those that have nothing to see are passed over."""
        if event_type == "stdout":
            self._write(self._output, fields["text"])
        elif event_type == "stderr":
            self._write(self._errors, fields["text"])
        elif event_type == "result":
            self.show_bundle(fields["data"])
        elif event_type == "error":
            self._write(self._errors, "\n".join(fields["traceback"]) + "\n")

    def show_bundle(self, bundle: Mapping[str, Any]) -> None:
        """A display, or the value of the last expression. Images are shown by their own events."""
        if "image" not in bundle and "text/plain" in bundle:
            self._write(self._output, f"{bundle['text/plain']}\n")

    def show_made(self, name: str, where: str) -> None:
        """An image or file, and where it is."""
        self._write(self._errors, f"[{name}] {where}\n")

    def show_picture(self, content: bytes) -> bool:
        """A PNG in the terminal itself, where that can show one. False where it cannot."""
        if not self._output.isatty() or (draw := _picture_protocol(os.environ)) is None:
            return False
        self._output.write(draw(content) + "\n")
        self._output.flush()
        return True

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        encoding = stream.encoding or "utf-8"
        shown = plain(text) if stream.isatty() else text
        stream.write(shown.encode(encoding, errors="replace").decode(encoding))
        stream.flush()


def _picture_protocol(environment: Mapping[str, str]) -> Any:
    """How this terminal takes pictures; None when it does not say that it does."""
    program = environment.get("TERM_PROGRAM", "")
    if (
        environment.get("TERM") == "xterm-kitty"
        or program in ("ghostty", "WezTerm")
        or "KITTY_WINDOW_ID" in environment
    ):
        return _for_kitty
    if program == "iTerm.app" or environment.get("LC_TERMINAL") == "iTerm2":
        return _for_iterm
    return None


def _for_kitty(content: bytes) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol/: PNG data in pieces of 4,096 characters."""
    text = base64.b64encode(content).decode()
    pieces = [text[start : start + _KITTY_PIECE] for start in range(0, len(text), _KITTY_PIECE)] or [""]
    last = len(pieces) - 1
    return "".join(
        f"\x1b_G{'a=T,f=100,' if number == 0 else ''}m={int(number < last)};{piece}\x1b\\"
        for number, piece in enumerate(pieces)
    )


def _for_iterm(content: bytes) -> str:
    """https://iterm2.com/documentation-images.html."""
    return f"\x1b]1337;File=inline=1;size={len(content)}:{base64.b64encode(content).decode()}\x07"
