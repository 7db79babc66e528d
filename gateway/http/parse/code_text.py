"""What is done to code before it runs: what a model or a chat page put around and into it goes, and nothing else.

That is a Markdown fence, a byte order mark, line ends of Windows, characters that nobody sees, and escapes that a URL
builder left. Pure functions on text. Nothing here runs code or changes code that was right as it came.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass
from itertools import islice

_MAX_PARSED_CHARACTERS = 16_384  # `import a.a.a…` takes the parser quadratic time, and this runs in the event loop
_MAX_BLOCKS = 50
_MAX_TRIED = 8
_ESCAPE = re.compile(r'\\(\\|n|t|")')
_ESCAPED = {"\\": "\\\\", "n": "\n", "t": "\t", '"': '"'}
_BYTE_ORDER_MARK = "\ufeff"

_OPENING = re.compile(r"([ \t]*)(`{3,}(?=[^`]*$)|~{3,})[ \t]*(.*)")
_PYTHON_TAGS = frozenset({"python", "python3", "py", "py3", "ipython", "ipython3", "tool_code", "jupyter", "code"})
_WORDS = re.compile(r"[\w\s]*")

_UNSEEN = re.compile("[\u200b\u200c\u200d\u2060\ufeff]")
_SPACES = re.compile("[\u00a0\u2007\u202f\u3000]")
_STRING_OR_COMMENT = re.compile(
    r"""(\"{3}|'{3})(?:\\.|.)*?\1|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|\#[^\n]*""", re.DOTALL
)
_MAGIC = re.compile(r"^([ \t]*)(?:[%!].*|[\w.]+\?{1,2}[ \t]*)$", re.MULTILINE)
_ASSIGNED_MAGIC = re.compile(r"^([ \t]*[\w, \t]+=[ \t]*)[%!].*$", re.MULTILINE)


def plain_code(code: str, *, is_python: bool) -> str:
    """The code itself: with line ends as Python's tokenizer reads them, without what surrounds it or cannot be seen."""
    code = code.removeprefix(_BYTE_ORDER_MARK).replace("\r\n", "\n")
    if is_python:
        code = code.replace("\r", "\n")
    code = _without_fence(code, is_python=is_python).removeprefix(_BYTE_ORDER_MARK)
    return _without_unseen(code) if is_python else code


@dataclass(frozen=True, slots=True)
class _Block:
    """A fenced block: its lines are `first` (the opening) up to `end`, the closing included."""

    tag: str
    body: str
    first: int
    end: int


def _without_fence(code: str, *, is_python: bool) -> str:
    """Take what is around a block away: a fence around everything, one that is not closed, or prose around one block.

    Prose is only looked for in what is no Python as it stands.
    """
    if "```" not in code and "~~~" not in code:
        return code
    opening = _OPENING.match(code.lstrip().partition("\n")[0])
    if is_python and (code.lstrip().startswith("%%") or (_tag(opening) not in _PYTHON_TAGS and _is_code(code))):
        return code
    stripped = strip_fence(code)
    if stripped != code and (not is_python or not _blocks(stripped) or _is_code(stripped)):
        return stripped
    return _only_block(code, is_python=is_python, is_first=opening is not None) or code


def _only_block(code: str, *, is_python: bool, is_first: bool) -> str | None:
    """What the only block of this text holds, if it is meant to be run: Python, or what the text begins with."""
    blocks = _blocks(code) if is_first or is_python else []
    if is_python and len(blocks) > 1:
        blocks = [block for block in blocks if block.tag in _PYTHON_TAGS]
    if len(blocks) != 1:
        return None
    (block,) = blocks
    lines = code.split("\n")
    before, after = "\n".join(lines[: block.first]), "\n".join(lines[block.end :])
    if not is_first and (block.tag not in {"", *_PYTHON_TAGS} or not _is_prose(before, after)):
        return None
    return block.body


def _is_prose(before: str, after: str) -> bool:
    """Whether text around a block is no code, and the block not part of a string in it."""
    if any(before.count(quotes) % 2 for quotes in ('"""', "'''")):
        return False
    text = f"{before}\n{after}"
    return _WORDS.fullmatch(text) is not None or not _is_code(text)


def _blocks(code: str) -> list[_Block]:
    """The fenced blocks, as CommonMark has them, but that a fence in a string does not close a block of Python."""
    lines, index = code.split("\n"), 0
    found: list[_Block] = []
    while index < len(lines) and len(found) < _MAX_BLOCKS:
        opening = _OPENING.fullmatch(lines[index].rstrip())
        if opening is None:
            index += 1
            continue
        after = range(index + 1, len(lines))
        closings = list(islice((at for at in after if _closes(lines[at], opening[2])), _MAX_TRIED))
        whole = (at for at in closings if _is_code(_body(lines[index + 1 : at], opening)))
        end = next(whole, closings[0]) if closings else len(lines)
        body = _body(lines[index + 1 : end], opening)
        if not closings and body.rstrip().endswith(opening[2]) and not _is_code(body):
            body = body.rstrip().removesuffix(opening[2])
        found.append(_Block(_tag(opening), body, index, end + 1))
        index = end + 1
    return found


def _body(lines: list[str], opening: re.Match[str]) -> str:
    return "\n".join(_unindented(line, len(opening[1])) for line in lines)


def _unindented(line: str, indent: int) -> str:
    return line[min(indent, len(line) - len(line.lstrip(" \t"))) :]


def _closes(line: str, fence: str) -> bool:
    line = line.strip()
    return len(line) >= len(fence) and not line.strip(fence[0])


def _tag(opening: re.Match[str] | None) -> str:
    """The language that a fence names: `python` of `python title="x"` and of `{.python}`."""
    words = opening[3].strip("{}. \t").lower().split() if opening else []
    return words[0].strip("{},.") if words else ""


def strip_fence(code: str) -> str:
    """Take a fence around everything away; code without one comes back as it is.

    One that was indented (in a list) takes that much indentation with it, as CommonMark has it:
    https://spec.commonmark.org/0.31.2/#fenced-code-blocks
    """
    start = len(code) - len(code.lstrip())
    mark = code[start : start + 1]
    if mark not in ("`", "~") or not code.startswith(mark * 3, start):
        return code
    end = len(code.rstrip())
    first_newline, last_newline = code.find("\n", start, end), code.rfind("\n", start, end)
    opening, closing = code[start:first_newline], code[last_newline + 1 : end].strip()
    ticks = len(opening) - len(opening.lstrip(mark))
    if first_newline < 0 or "`" in opening[ticks:] or closing.strip(mark) or len(closing) < ticks:
        return code
    body = code[first_newline + 1 : max(first_newline + 1, last_newline)].removesuffix("\r")
    indent = start - (code.rfind("\n", 0, start) + 1)
    return re.sub(rf"^[ \t]{{1,{indent}}}", "", body, flags=re.MULTILINE) if indent else body


def _without_unseen(code: str) -> str:
    """Code without characters of no width, and with plain spaces, where that turns what cannot be Python into Python.

    In strings and comments they stay: there they mean something.
    """
    if (_UNSEEN.search(code) is None and _SPACES.search(code) is None) or _is_code(code):
        return code
    parts, at = [], 0
    for kept in _STRING_OR_COMMENT.finditer(code):
        parts += [_SPACES.sub(" ", _UNSEEN.sub("", code[at : kept.start()])), kept[0]]
        at = kept.end()
    seen = "".join(parts) + _SPACES.sub(" ", _UNSEEN.sub("", code[at:]))
    return seen if _is_code(seen) else code


def _is_code(code: str) -> bool:
    """Whether this is Python but for magics, `!commands` and `help?`."""
    return len(code) <= _MAX_PARSED_CHARACTERS and _parses(_ASSIGNED_MAGIC.sub(r"\g<1>0", _MAGIC.sub(r"\1pass", code)))


def unescape_query_code(code: str) -> str:
    r"""Undo `\n`, `\t` and `\"` that were escaped as text, where that turns what cannot be Python into Python.

    Magics, `!commands` and `help?` are no Python before and none afterwards, so they come back as they are; an escape
    inside a string literal of valid code is left alone for the same reason.
    """
    if len(code) > _MAX_PARSED_CHARACTERS or _ESCAPE.search(code) is None or _parses(code):
        return code
    unescaped = _ESCAPE.sub(lambda match: _ESCAPED[match[1]], code)
    return unescaped if unescaped != code and _parses(unescaped) else code


def _parses(code: str) -> bool:
    """Whether this is Python, top-level `await` included. Parsed only, never compiled to code objects."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "<query>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True
