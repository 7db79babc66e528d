"""The playground in a real browser: code, sessions, files, input, and runs that outlive the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from browser_rig import watched_page
from playground_rig import Playground, process_gateway
from playwright.sync_api import Browser, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from serve_rig import REPOSITORY, Gateway

WAITING = """\
import os, time
print("before")
while not os.path.exists({path!r}):
    time.sleep(0.02)
print("after")
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with process_gateway() as gateway:
        yield gateway


@pytest.fixture
def tab(browser: Browser, served: Gateway) -> Iterator[Playground]:
    with watched_page(browser, served.url, permissions=["clipboard-read", "clipboard-write"]) as (page, _):
        playground = Playground(page, served.url)
        playground.open()
        yield playground
    for session in httpx.get(f"{served.url}/sessions").json()["sessions"]:
        httpx.delete(f"{served.url}/sessions/{session['session_id']}", timeout=60)


def test_output_streams_files_go_in_and_out_and_variables_stay(tab: Playground) -> None:
    tab.make_session()
    tab.begin(
        "import os, time\nprint('first')\nwhile not os.path.exists('go.txt'): time.sleep(0.02)\n"
        "print('second', open('go.txt').read())\nopen('back.csv', 'w').write('a,b\\n')\ntotal = 41"
    )
    expect(tab.output).to_have_text("first\n")
    expect(tab.state).to_have_text("Running")
    go = {"name": "go.txt", "mimeType": "text/plain", "buffer": b"now"}
    tab.page.locator("#upload-field").set_input_files([go])  # type: ignore[list-item]
    expect(tab.output).to_contain_text("first\nsecond now\n")
    expect(tab.state).to_have_text("Finished")
    expect(tab.page.locator("#files-summary")).to_have_text("Files (2)")
    with tab.page.expect_download() as coming:
        tab.page.get_by_role("button", name="back.csv", exact=True).click()
    assert coming.value.suggested_filename == "back.csv"
    assert Path(coming.value.path()).read_text() == "a,b\n"
    tab.page.get_by_role("button", name="Remove back.csv").click()
    expect(tab.page.locator("#files-summary")).to_have_text("Files (1)")
    tab.run("total + 1")
    expect(tab.output).to_have_text("42")


def test_a_file_that_is_dropped_on_the_page_gets_a_session(tab: Playground) -> None:
    dropped = """() => {
      const data = new DataTransfer();
      data.items.add(new File(["x,y\\n"], "dropped é.csv"));
      for (const type of ["dragover", "drop"]) {
        document.body.dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
      }
    }"""
    tab.page.evaluate(dropped)
    expect(tab.page.locator("#files-list")).to_contain_text("dropped é.csv")
    tab.run("print(open('dropped é.csv').read())")
    expect(tab.output).to_contain_text("x,y")


def test_a_folder_that_is_dropped_is_refused_and_files_are_taken_over_a_frame_too(
    tab: Playground, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("a")
    tab.make_session()
    tab.run("from IPython.display import HTML\nHTML('<p>x</p>' * 20)")
    box = tab.output.locator("iframe").bounding_box()
    assert box is not None
    inside = (box["x"] + 50, box["y"] + 30)
    _drop(tab, [tmp_path / "a.txt", tmp_path / "folder"], inside)
    expect(tab.problem).to_contain_text('"folder" cannot be read. Folders are not taken')
    expect(tab.page.locator("#files-list")).to_contain_text("a.txt")


def _drop(tab: Playground, paths: list[Path], place: tuple[float, float]) -> None:
    """Drag them over the header of the page to a place, and let go there."""
    devtools = tab.page.context.new_cdp_session(tab.page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    header = (600.0, 30.0)
    for kind, (x, y) in (("dragEnter", header), ("dragOver", header), *[("dragOver", place)] * 3, ("drop", place)):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})
        tab.page.evaluate("new Promise(requestAnimationFrame)")


def test_a_run_is_answered_interrupted_and_its_session_restarted(tab: Playground) -> None:
    tab.make_session()
    tab.begin("from getpass import getpass\nname = input('name? ')\nprint('Hello', name, len(getpass('secret? ')))")
    box = tab.output.get_by_label("name?")
    expect(box).to_be_focused()
    expect(tab.state).to_have_text("Waiting for input")
    box.fill("Ada")
    box.press("Enter")
    secret = tab.output.get_by_label("secret?")
    expect(secret).to_have_attribute("type", "password")
    secret.fill("pass")
    secret.press("Enter")
    expect(tab.state).to_have_text("Finished")
    expect(tab.output).to_contain_text("name? Ada")
    expect(tab.output).to_contain_text("Hello Ada 4")
    expect(tab.output).not_to_contain_text("pass")

    tab.begin("import time\nkept = 1\nprint('on')\nwhile True: time.sleep(0.05)")
    expect(tab.output).to_contain_text("on")
    tab.button("Interrupt").click()
    expect(tab.output.locator(".exception")).to_have_text("KeyboardInterrupt")
    expect(tab.state).to_have_text("The code raised an exception")
    tab.run("kept")
    expect(tab.output).to_have_text("1")

    tab.button("Restart").click()
    expect(tab.output).to_contain_text("its variables are gone, its files were kept")
    tab.run("x = 1\nkept", "The code raised an exception")
    expect(tab.output.locator(".exception")).to_have_text("NameError: name 'kept' is not defined")
    expect(tab.output.locator(".failing")).to_contain_text("kept")
    expect(tab.page.locator(".cm-failingLine")).to_have_text("kept")

    tab.run("import os; os._exit(1)", "The kernel died")
    expect(tab.output).to_contain_text("The session's variables are gone")
    tab.page.once("dialog", lambda dialog: dialog.accept())
    tab.button("End session").click()
    expect(tab.page.locator("#session")).to_have_value("")
    expect(tab.button("Restart")).to_be_hidden()


def test_what_ignores_an_interrupt_is_cancelled_by_the_next_one(tab: Playground) -> None:
    tab.begin(
        "import time\nprint('on')\nwhile True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: print('ignored')"
    )
    expect(tab.output).to_contain_text("on")
    tab.button("Interrupt").click()
    expect(tab.output).to_contain_text("ignored")
    tab.button("Cancel run").click()
    expect(tab.state).to_have_text("Cancelled")
    expect(tab.button("Interrupt")).to_be_disabled()


@pytest.mark.parametrize(
    ("language", "code", "token"),
    [
        ("bash", "for f in *; do echo; done", "for"),
        ("r", "x <- c(1) # note", "# note"),
        ("javascript", "const x = 'text'", "'text'"),
        ("typescript", "const x: number = 1", "number"),
        ("constructor", "plain", None),
    ],
)
def test_languages_are_highlighted(tab: Playground, language: str, code: str, token: str | None) -> None:
    tab.page.evaluate(
        """language => {
          const select = document.getElementById("language");
          select.append(new Option(language, language));
          select.value = language;
          select.dispatchEvent(new Event("change"));
        }""",
        language,
    )
    tab.write(code)
    expect(tab.page.locator(".cm-content")).to_have_text(code)
    spans = tab.page.locator(".cm-line span")
    if token is None:
        expect(spans).to_have_count(0)
    else:
        expect(spans.get_by_text(token, exact=True)).to_be_visible()


def test_a_run_goes_on_over_broken_connections_and_is_reopened_by_its_address(tab: Playground, tmp_path: Path) -> None:
    gate = tmp_path / "go"
    tab.begin(WAITING.format(path=str(gate)) + "print(input('more? '))")
    expect(tab.output).to_have_text("before\n")
    tab.break_connections()
    tab.page.reload()
    expect(tab.output).to_have_text("before\n")
    expect(tab.state).to_have_text("Running")
    expect(tab.page.locator(".cm-content")).to_contain_text('print("before")')
    gate.touch()
    box = tab.output.get_by_label("more?")
    box.fill("yes")
    box.press("Enter")
    expect(tab.state).to_have_text("Finished")
    # What is printed just before a question may come just after it.
    expect(tab.output).to_contain_text("after\n")
    expect(tab.output).to_contain_text("more? yes")
    expect(tab.output).to_contain_text("yes\n")
    fragment = tab.page.evaluate("location.hash")

    tab.page.goto("about:blank")
    tab.open(fragment)
    expect(tab.state).to_have_text("Finished")
    expect(tab.output).to_contain_text("before\n")
    expect(tab.output).to_contain_text("yes\n")
    tab.page.get_by_text("Recent runs").click()
    assert tab.page.locator("#recent-list a").first.get_attribute("href") == fragment


def test_output_follows_without_gap_or_repeat_when_the_connection_breaks(tab: Playground, tmp_path: Path) -> None:
    gate = tmp_path / "go"
    tab.begin(WAITING.format(path=str(gate)))
    expect(tab.output).to_have_text("before\n")
    tab.break_connections()
    gate.touch()
    expect(tab.state).to_have_text("Finished")
    expect(tab.output).to_have_text("before\nafter\n")


def test_a_run_that_was_silent_for_long_is_still_followed_when_the_connection_breaks(
    tab: Playground, tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    tab.begin(WAITING.format(path=str(gate)))
    expect(tab.output).to_have_text("before\n")
    tab.page.evaluate("{ const now = performance.now.bind(performance); performance.now = () => now() + 600_000; }")
    tab.break_connections()
    gate.touch()
    expect(tab.output).to_have_text("before\nafter\n")
    expect(tab.state).to_have_text("Finished")


def test_a_run_that_is_left_for_another_goes_on_and_does_not_get_into_its_output(
    tab: Playground, tmp_path: Path
) -> None:
    tab.run("print('earlier')")
    earlier = tab.page.evaluate("location.hash")
    gate = tmp_path / "go"
    tab.begin(WAITING.format(path=str(gate)))
    expect(tab.output).to_have_text("before\n")
    left = tab.page.evaluate("location.hash")
    tab.page.evaluate("hash => { location.hash = hash; }", earlier)
    expect(tab.output).to_have_text("earlier\n")
    expect(tab.state).to_have_text("Finished")
    gate.touch()
    tab.page.locator("#output").press("Control+Enter")
    expect(tab.page.locator("#permalink")).not_to_have_attribute("href", earlier)
    expect(tab.state).to_have_text("Finished")
    expect(tab.output).to_have_text("earlier\n")
    tab.page.evaluate("hash => { location.hash = hash; }", left)
    expect(tab.output).to_have_text("before\nafter\n")


def test_an_address_of_no_run_leaves_the_run_that_goes_on(browser: Browser, served: Gateway, tmp_path: Path) -> None:
    gate = tmp_path / "go"
    with watched_page(browser, served.url, expected="404") as (page, _):
        playground = Playground(page, served.url)
        playground.open()
        playground.begin(WAITING.format(path=str(gate)))
        expect(playground.output).to_have_text("before\n")
        page.reload()
        expect(playground.output).to_have_text("before\n")
        page.evaluate("location.hash = 'run=3ec4e160-aff0-4a08-8af8-da50ace9e93a'")
        expect(playground.problem).to_contain_text("There is no run by that id")
        gate.touch()
        expect(playground.output).to_have_text("before\nafter\n")
        expect(playground.button("Run")).to_be_enabled()
        playground.run("2")


def test_an_address_of_no_run_is_said_to_be_none(browser: Browser, served: Gateway) -> None:
    with watched_page(browser, served.url, expected="404") as (page, _):
        playground = Playground(page, served.url)
        playground.open("#run=3ec4e160-aff0-4a08-8af8-da50ace9e93a")
        expect(playground.problem).to_contain_text("There is no run by that id")


def test_the_kernel_completes_and_the_keyboard_is_not_trapped(tab: Playground) -> None:
    tab.make_session()
    tab.run("unmistakable_name = 1")
    tab.write("")
    tab.page.keyboard.type("print(unmista")
    offered = tab.page.locator(".cm-tooltip-autocomplete li", has_text="unmistakable_name")
    for _ in range(20):  # a kernel's first completion may take longer than one waits for it
        tab.page.keyboard.press("Control+Space")
        with suppress(PlaywrightTimeout):
            offered.wait_for(timeout=3_000)
            break
    expect(tab.page.locator(".cm-tooltip-autocomplete-disabled")).to_have_count(0)
    offered.click()
    expect(tab.page.locator(".cm-content")).to_have_text("print(unmistakable_name)")

    tab.write("if x:")
    tab.page.keyboard.press("Enter")
    tab.page.keyboard.press("Tab")
    assert tab.page.locator(".cm-line").last.inner_text().startswith(" " * 8)
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.id") == "permalink"


def test_a_call_that_is_copied_runs_as_it_is(tab: Playground) -> None:
    tab.write(r"""print('it\'s', "two", '$HOME `x` \\n', 'é 漢 😀')""" + "\nopen('made.txt', 'w').write('x')")
    printed = "it's two $HOME `x` \\n é 漢 😀\n"
    tab.button("Copy as…").click()
    tab.page.get_by_role("dialog").get_by_role("button", name="Copy").click()
    expect(tab.page.locator("#call-copied")).to_have_text("Copied.")
    shown = tab.page.evaluate("navigator.clipboard.readText()")
    answer = subprocess.run(["bash", "-c", shown], capture_output=True, check=True, timeout=60)
    assert json.loads(answer.stdout)["output"] == printed
    assert "made.txt" in json.loads(answer.stdout)["files"]

    tab.page.get_by_label("Python", exact=True).check()
    program = tab.page.locator("#call-text").inner_text()
    assert f'Client("{tab.url}")' in program
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8"}
    ran = subprocess.run(
        [sys.executable, "-"], check=True, input=program.encode(), capture_output=True, env=environment, timeout=60
    )
    assert ran.stdout.decode().startswith(printed)
