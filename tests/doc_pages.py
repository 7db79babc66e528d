"""The Markdown pages of the repository as tests read them: blocks of code, headings, links.

What is in a block is run by its language: e2e/docs. A comment on the line before it says what else is to be done:

    <!-- not run: it needs systemd -->           nothing, and why
    <!-- run by tests/e2e/docs/test_x.py -->     that test reads it
    <!-- file: plot.py -->                       it is written to a file, which later blocks of the page find
    <!-- body of POST /sessions -->              it is sent, and accepted
    <!-- answer to GET /sessions/chat-42 -->     an answer has the same fields

`<!-- none is run: they need systemd -->` below a heading holds for all blocks of that section which have no comment of
their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

REPOSITORY = Path(__file__).parents[1]
DRAWING = "text"
"""The language of blocks that are no examples."""

MARKS = ("not run:", "run by", "file:", "body of", "answer to")
_NOT_RUN = MARKS[0]
_NONE_IS_RUN = re.compile(r"<!-- none is run: (.+?) -->", re.DOTALL)
_MARK = re.compile(rf"<!-- ({'|'.join(MARKS)}) (.+?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Code on a page. `line` is that of its first line, from 1 on."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    argument: str
    """Of the mark: the reason, the test, the file's name, the request."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class MarkdownPage:
    path: Path

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return self.path.relative_to(REPOSITORY).as_posix()

    @cached_property
    def tokens(self) -> list[Token]:
        return MarkdownIt().enable("table").parse(self.path.read_text())

    @cached_property
    def blocks(self) -> list[Block]:
        """In order, without drawings."""
        blocks, before = [], Token("", "", 0)
        level, reasons = 0, {}  # of the section, and of those around it that have one
        for token in self.tokens:
            if token.type == "heading_open":
                level = int(token.tag[1:])
                reasons = {around: reason for around, reason in reasons.items() if around < level}
            elif token.type == "html_block" and (found := _NONE_IS_RUN.match(token.content)):
                reasons[level] = found[1]
            elif token.type in ("fence", "code_block") and token.info != DRAWING:
                blocks.append(self._block(token, before, next(iter(reasons.values()), "")))
            before = token
        return blocks

    @cached_property
    def anchors(self) -> set[str]:
        """Of its headings, as GitHub makes them."""
        anchors: set[str] = set()
        for opening, inline in zip(self.tokens, self.tokens[1:], strict=False):
            if opening.type == "heading_open":
                text = "".join(child.content for child in inline.children or [])
                slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
                anchors.add(_free(slug, anchors))
        return anchors

    def links(self) -> Iterator[tuple[int, str]]:
        """Where its links and pictures lead, with the line."""
        for token in self.tokens:
            for child in token.children or []:
                target = child.attrs.get("href") or child.attrs.get("src")
                if target:
                    yield (token.map or [0])[0] + 1, str(target)

    def has(self, target: str) -> bool:
        """Whether a link of it leads somewhere; what is elsewhere is taken on trust."""
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            return True
        path = (self.path.parent / unquote(parts.path)).resolve() if parts.path else self.path
        if not path.exists() or not path.is_relative_to(REPOSITORY):
            return False
        return not parts.fragment or parts.fragment in MarkdownPage(path).anchors

    def _block(self, token: Token, before: Token, reason: str) -> Block:
        found = _MARK.match(before.content) if before.type == "html_block" else None
        mark, argument = (found[1], found[2]) if found else (_NOT_RUN if reason else "", reason)
        line = (token.map or [0])[0] + (2 if token.type == "fence" else 1)
        return Block(self.name, line, token.info, token.content, mark, " ".join(argument.split()))


def example_pages() -> list[MarkdownPage]:
    """The pages for users that have blocks."""
    paths = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return [page for page in map(MarkdownPage, paths) if page.blocks]


def all_pages() -> list[MarkdownPage]:
    """Those for developers, too."""
    top = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/README.md")]
    return [MarkdownPage(path) for path in [*top, *sorted((REPOSITORY / "docs").rglob("*.md"))]]


def _free(slug: str, taken: set[str]) -> str:
    return next(name for name in (slug, *(f"{slug}-{n}" for n in range(1, 100))) if name not in taken)
