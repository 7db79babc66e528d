"""README and docs: links lead somewhere, and each block of code is an example that runs, or says why it is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_pages import REPOSITORY, Block, MarkdownPage, all_pages, example_pages

RUN = {"python", "console", "sh", "json", "yaml", "websocket"}
"""Languages that e2e/docs knows how to run."""


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: MarkdownPage) -> None:
    assert [f"{page.name}:{line}: {target}" for line, target in page.links() if not page.has(target)] == []


def test_the_index_has_every_page() -> None:
    index = MarkdownPage(REPOSITORY / "docs" / "README.md")
    linked = {(index.path.parent / target.partition("#")[0]).resolve() for _, target in index.links()}
    pages = {page.path for page in all_pages() if page.path.is_relative_to(index.path.parent)} - {index.path}
    assert sorted(path.name for path in pages - linked) == [], "docs/README.md says who reads which page"


@pytest.mark.parametrize("page", example_pages(), ids=lambda page: page.name)
def test_each_block_is_an_example_or_says_why_it_is_none(page: MarkdownPage) -> None:
    assert [f"{block}: {complaint}" for block in page.blocks if (complaint := complaint_about(block))] == []


def complaint_about(block: Block) -> str:
    if block.mark == "not run:" and len(block.argument.split()) < 3:
        return "say why it is not run"
    if block.mark == "run by" and block.page not in source_of(block):
        return f"{block.argument} is no test that names {block.page}"
    if not block.mark and block.language not in RUN:
        what = block.language or "a block without a language"
        return f"nothing runs {what}: call it `text` if it is no example, or put `<!-- not run: why -->` before it"
    return ""


def source_of(block: Block) -> str:
    path = REPOSITORY / block.argument
    return path.read_text() if path.is_file() else ""


def page_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> MarkdownPage:
    monkeypatch.setattr("doc_pages.REPOSITORY", tmp_path)
    path = tmp_path / "page.md"
    path.write_text(text)
    return MarkdownPage(path)


def test_blocks_with_their_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "# A page\n\n```text\na drawing\n```\n\n- one:\n\n  ```console\n  $ ls\n  ```\n\n"
        "<!-- not run: it needs\n     a mill -->\n```sh\ngrind\n```\n<!-- a comment -->\n```json\n{}\n```\n"
    )
    blocks = page_of(tmp_path, monkeypatch, text).blocks
    assert [(block.language, block.text, block.mark, block.argument) for block in blocks] == [
        ("console", "$ ls\n", "", ""),
        ("sh", "grind\n", "not run:", "it needs a mill"),
        ("json", "{}\n", "", ""),
    ]
    assert [block.line for block in blocks] == [10, 16, 20]


def test_a_reason_holds_for_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = "```sh\ntrue\n```\n\n"
    text = (
        f"# A page\n\n{block}## A\n\n<!-- none is run: it needs a mill -->\n\n{block}### B\n\n{block}"
        f"<!-- file: a -->\n{block}## C\n\n{block}"
    )
    blocks = page_of(tmp_path, monkeypatch, text).blocks
    assert [block.mark for block in blocks] == ["", "not run:", "not run:", "file:", ""]
    assert blocks[2].argument == "it needs a mill"


def test_anchors_are_those_of_github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "# `env` and *files*: what, where?\n\n## Runs\n\n## Runs\n\n### How to add …\n"
    assert page_of(tmp_path, monkeypatch, text).anchors == {"env-and-files-what-where", "runs", "runs-1", "how-to-add-"}


@pytest.mark.parametrize("target", ["nowhere.md", "#nothing", "page.md#nothing", "../outside.md"])
def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    page = page_of(tmp_path, monkeypatch, "# A page\n")
    assert page.has("page.md#a-page")
    assert not page.has(target)
