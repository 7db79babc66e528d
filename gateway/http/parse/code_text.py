"""Cleans code before it runs: removes a surrounding Markdown fence, and escapes that a URL builder left.

Pure functions on text. Nothing here runs code or changes valid code.
"""

from __future__ import annotations

import ast
import re
import warnings

_FENCE = "```"
_MAX_PARSED_CHARACTERS = 16_384  # `import a.a.a…` takes the parser quadratic time, and this runs in the event loop
_ESCAPE = re.compile(r'\\(\\|n|t|")')
_ESCAPED = {"\\": "\\\\", "n": "\n", "t": "\t", '"': '"'}


def strip_fence(code: str) -> str:
    """Take a surrounding ```` ```python ```` fence away; other code is returned unchanged.

    Only a fence around everything counts. One that was indented (in a list) takes that much indentation with it, as
    CommonMark has it: https://spec.commonmark.org/0.31.2/#fenced-code-blocks
    """
    start = len(code) - len(code.lstrip())
    if not code.startswith(_FENCE, start):
        return code
    end = len(code.rstrip())
    first_newline, last_newline = code.find("\n", start, end), code.rfind("\n", start, end)
    opening, closing = code[start:first_newline], code[last_newline + 1 : end].strip()
    ticks = len(opening) - len(opening.lstrip("`"))
    if first_newline < 0 or "`" in opening[ticks:] or closing.strip("`") or len(closing) < ticks:
        return code
    body = code[first_newline + 1 : max(first_newline + 1, last_newline)].removesuffix("\r")
    indent = start - (code.rfind("\n", 0, start) + 1)
    return re.sub(rf"^[ \t]{{1,{indent}}}", "", body, flags=re.MULTILINE) if indent else body


def unescape_query_code(code: str) -> str:
    r"""Undo `\n`, `\t` and `\"` that were escaped as text, where that turns what cannot be Python into Python.

    Magics, `!commands` and `help?` are not Python, before or after, so they are returned unchanged. So is valid code
    with an escape in a string literal.
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
