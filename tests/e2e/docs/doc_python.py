"""Blocks of Python: all of a page share their variables, as the cells of a notebook do.

A comment behind an expression, or an assignment to a name, that begins with a literal is a claim about its value:

    result.output  # '24.0\n': what went to stdout
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import traceback
from contextlib import redirect_stdout
from typing import Any

from doc_console import pattern
from doc_pages import Block

_LITERAL = re.compile(r"['\"\[({]|-?\d|(?:True|False|None)\b")


def run_python(block: Block, text: str, namespace: dict[str, Any]) -> str:
    """What is wrong, or nothing."""
    claims = claims_of(text)
    tree = ast.increment_lineno(ast.parse(text), block.line - 1)
    for statement in tree.body:
        try:
            shown = _run(statement, namespace, block.page)
        except Exception:  # noqa: BLE001 - whatever an example raises
            return traceback.format_exc()
        claim = claims.get((statement.end_lineno or 0) - block.line + 1, "")
        if claim and not holds(claim, shown):
            return f"line {statement.end_lineno} is {shown}, and not {claim}"
    return ""


def claims_of(text: str) -> dict[int, str]:
    """Comments that begin with a literal, by their line."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {line: comment for line, comment in comments.items() if _LITERAL.match(comment)}


def holds(claim: str, shown: str) -> bool:
    """Words may follow the value."""
    return re.match(rf"{re.escape(shown)}(?![\w.])", claim) is not None or pattern(claim).fullmatch(shown) is not None


def _run(statement: ast.stmt, namespace: dict[str, Any], page: str) -> str:
    """Run it; its value as a prompt shows it, or what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), page, "exec"), namespace)  # noqa: S102
            match statement:
                case ast.Assign(targets=[ast.Name(name)]):
                    return repr(namespace[name])
                case _:
                    return printed.getvalue().rstrip("\n")
        value = eval(compile(ast.Expression(statement.value), page, "eval"), namespace)  # noqa: S307
    return printed.getvalue().rstrip("\n") or repr(value)
