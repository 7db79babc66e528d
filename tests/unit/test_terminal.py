"""What the command line writes on a terminal, and in a pipe."""

from __future__ import annotations

import base64
import io
import re

import pytest

from gateway.cli.tables import duration
from gateway.cli.terminal import Screen, plain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a\x1b[1;31mred\x1b[0m\tb\r\nc\b", "a\x1b[1;31mred\x1b[0m\tb\r\nc\b"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;Y2xpcA==\x1b\\b", "ab"),
        ("a\x1b]0;never ended", "a"),
        ("a\x1bPq#0\x1b\\b\x1b_Gx\x1b\\c\x1b^p\x1b\\d", "abcd"),
        ("a\x1b[2Jb\x1b[6nc\x1b[?1049hd\x1b[10;10He", "abcde"),
        ("a\x1bcb\x1b(0c\x1b7d", "abcd"),
        ("a\x9b6nb\x00c\x7fd", "a6nbcd"),
        ("a\x1b", "a"),
    ],
)
def test_a_terminal_gets_colours_and_no_other_escapes(text: str, left: str) -> None:
    assert plain(text) == left
    terminal, pipe = Terminal(), io.StringIO()
    Screen(terminal, terminal).show("stdout", {"text": text})
    Screen(pipe, pipe).show("stdout", {"text": text})
    assert (terminal.getvalue(), pipe.getvalue()) == (left, text)


def test_lone_surrogates_do_not_end_the_command() -> None:
    for stream in (io.TextIOWrapper(io.BytesIO(), "utf-8"), Terminal()):
        Screen(stream, stream).show("stdout", {"text": "a\ud800b"})


class AsciiTerminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_what_an_encoding_does_not_have_is_replaced() -> None:
    for kind in (io.TextIOWrapper, AsciiTerminal):
        for encoding in ("ascii", "utf-8"):
            content = io.BytesIO()
            stream = kind(content, encoding)
            Screen(stream).show("stdout", {"text": "a\ud800b\u00e9"})
            assert content.getvalue() == "a?b\u00e9".encode(encoding, errors="replace")


def test_a_picture_is_drawn_where_the_terminal_can(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERM", "TERM_PROGRAM", "KITTY_WINDOW_ID", "LC_TERMINAL"):
        monkeypatch.delenv(name, raising=False)
    content = bytes(range(256)) * 20
    assert not Screen(Terminal()).show_picture(content)
    monkeypatch.setenv("TERM", "xterm-kitty")
    assert not Screen(io.StringIO()).show_picture(content)
    terminal = Terminal()
    assert Screen(terminal).show_picture(content)
    pieces = re.findall(r"\x1b_G[^;]*;([^\x1b]*)\x1b\\", terminal.getvalue())
    assert base64.b64decode("".join(pieces)) == content
    assert terminal.getvalue().count("m=1;") == len(pieces) - 1
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TERM_PROGRAM", "iTerm.app")
    terminal = Terminal()
    assert Screen(terminal).show_picture(content)
    assert base64.b64encode(content).decode() in terminal.getvalue()


def test_lengths_of_time() -> None:
    assert [duration(seconds) for seconds in (3, 90, 7200, 200_000)] == ["3 s", "2 min", "2 h", "2 d"]
