"""JupyterLab in a real browser, its kernels being the gateway's: what a person does in a notebook.

Every step leaves a screenshot in `screenshots/` below pytest's temporary directory. Nothing here is asynchronous, for
Playwright keeps a loop of its own running between the steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from browser_rig import PATIENCE_MS
from client_rig import ALICE
from jupyter_client_rig import NUMBERED, jupyter_server, numbers
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Locator, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from serve_rig import Gateway

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.title('drawn here')\nplt.show()"
LINES = 100
SLIDER = """\
from ipywidgets import IntSlider, Output, interact

beside = Output()
slider = IntSlider(value=3, max=10)

@interact(x=slider)
def show(x):
    print("x is", x)

def note(change):
    with beside:
        print("moved to", change["new"])

slider.observe(note, "value")
display(beside)"""

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def lab(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """`jupyter lab --gateway-url=…`; its directory is where its notebooks are."""
    options = ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url="]
    with jupyter_server(gateway, tmp_path_factory.mktemp("lab"), "jupyterlab", *options) as lab:
        yield lab


class Notebook:
    """One notebook in its own browser tab."""

    def __init__(self, page: Page, screenshots: Path, name: str) -> None:
        self.page = page
        self._screenshots = screenshots
        self._name = name
        self._taken = 0

    def seen(self, what: str) -> None:
        """Take a screenshot."""
        self._taken += 1
        self.page.screenshot(path=self._screenshots / f"{self._name}-{self._taken}-{what}.png")

    def cell(self, number: int) -> Locator:
        return self.page.locator(".jp-Notebook .jp-CodeCell").nth(number)

    def output(self, number: int) -> Locator:
        return self.cell(number).locator(".jp-OutputArea-output")

    def run(self, number: int) -> None:
        self.cell(number).locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")

    def has_run(self, number: int, count: int) -> None:
        """Wait until a cell shows its execution count, which is when its reply has come."""
        expect(self.cell(number).locator(".jp-InputPrompt")).to_have_text(f"[{count}]:")

    def connected(self) -> None:
        """Wait until the status bar says that the kernel is there, and idle."""
        expect(self.page.get_by_text("Python 3 (ipykernel) | Idle", exact=True)).to_be_visible()

    def command(self, menu: str, command: str) -> None:
        self.page.locator(".lm-MenuBar-item", has_text=menu).first.click()
        self.page.locator(f".lm-Menu-item[data-command='{command}']").click()


@pytest.fixture
def notebook(browser: Browser, lab: Gateway, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Notebook]:
    """The notebook with the cells that the test's `cells` mark has, opened."""
    marker = request.node.get_closest_marker("cells")
    name = request.node.name.removeprefix("test_")[:40]
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_code_cell(source) for source in marker.args]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), lab.data_dir / f"{name}.ipynb")
    screenshots = tmp_path / "screenshots"
    screenshots.mkdir()
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    notebook = Notebook(page, screenshots, name)
    try:
        page.goto(f"{lab.url}/lab/workspaces/{name}/tree/{name}.ipynb?token={ALICE}")
        notebook.connected()
        yield notebook
    finally:
        notebook.seen("end")
        page.close()


def asked(gateway: Gateway, path: str, **query: str) -> Any:
    headers = {"Authorization": f"Bearer {ALICE}"}
    answer = httpx.get(f"{gateway.url}{path}", params=query, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.cells(PLOT, "print('text', 6 * 7)\n{'a': 1}")
def test_a_plot_and_text_appear_below_their_cells(notebook: Notebook) -> None:
    notebook.run(0)
    picture = notebook.output(0).locator("img")
    expect(picture).to_be_visible()
    assert (picture.get_attribute("src") or "").startswith("data:image/png;base64,")
    assert picture.evaluate("image => image.naturalWidth") > 100
    notebook.seen("plot")
    notebook.run(1)
    expect(notebook.output(1)).to_have_text(["text 42\n", "{'a': 1}"])
    notebook.seen("text")


@pytest.mark.cells("x = 1; print(x)", "print('x' in globals())")
def test_restart_kernel_takes_the_variables(notebook: Notebook) -> None:
    notebook.run(0)
    notebook.has_run(0, 1)
    notebook.command("Kernel", "kernelmenu:restart")
    notebook.seen("asked")
    notebook.page.locator(".jp-Dialog .jp-mod-accept").click()
    expect(notebook.page.locator(".jp-Dialog")).to_have_count(0)
    notebook.connected()
    notebook.run(1)
    expect(notebook.output(1)).to_have_text(["False\n"])
    notebook.has_run(1, 1)
    notebook.seen("restarted")


@pytest.mark.cells(NUMBERED.format(count=600, pause_s=0.1), "print('n' in globals())")
def test_interrupt_kernel_ends_the_cell(notebook: Notebook) -> None:
    notebook.run(0)
    expect(notebook.output(0).first).to_contain_text("3\n")
    notebook.command("Kernel", "kernelmenu:interrupt")
    expect(notebook.output(0).last).to_contain_text("KeyboardInterrupt")
    notebook.seen("interrupted")
    notebook.run(1)
    expect(notebook.output(1)).to_have_text(["True\n"])


@pytest.mark.cells(NUMBERED.format(count=LINES, pause_s=0.1) + "\ndone = 'kept'", "print(done, n)")
def test_a_page_that_is_reloaded_in_mid_run_loses_nothing(notebook: Notebook, gateway: Gateway) -> None:
    notebook.run(0)
    expect(notebook.output(0).first).to_contain_text("5\n")
    notebook.seen("running")
    (kernel_id,) = (kernel["id"] for kernel in asked(gateway, "/api/kernels") if kernel["execution_state"] == "busy")
    notebook.page.on("dialog", lambda dialog: dialog.accept())  # that there are unsaved changes
    notebook.page.reload()
    expect(notebook.page.locator(".jp-Toolbar-kernelName")).to_have_text("Python 3 (ipykernel)")
    assert asked(gateway, f"/api/kernels/{kernel_id}")["execution_state"] == "busy"
    notebook.seen("reloaded")
    notebook.run(1)  # waits for the loop, in the kernel that goes on
    expect(notebook.output(1)).to_have_text([f"kept {LINES - 1}\n"])
    notebook.has_run(1, 2)
    notebook.seen("afterwards")
    (session,) = (one for one in asked(gateway, "/sessions")["sessions"] if one["kernel_id"] == kernel_id)
    runs = asked(gateway, "/runs", session_id=session["session_id"])["runs"]
    loop = asked(gateway, f"/runs/{runs[-1]['run_id']}")
    assert (loop["status"], loop["output"]) == ("ok", numbers(LINES))


@pytest.mark.cells(SLIDER, "slider.value = 1\nprint('set')")
def test_what_a_slider_prints_follows_when_it_is_moved(notebook: Notebook) -> None:
    captured = notebook.cell(0).locator(".widget-output")
    shown, beside = captured.nth(0), captured.nth(1)
    notebook.run(0)
    expect(shown).to_have_text("x is 3\n")
    notebook.seen("before")
    notebook.cell(0).locator(".noUi-handle").focus()
    notebook.page.keyboard.press("ArrowRight")
    expect(shown).to_have_text("x is 4\n")
    expect(beside).to_have_text("moved to 4\n")
    notebook.seen("moved")
    notebook.run(1)
    expect(notebook.output(1)).to_have_text(["set\n"])
    expect(shown).to_have_text("x is 1\n")
    expect(beside).to_have_text("moved to 4\nmoved to 1\n")
    notebook.seen("set")


@pytest.mark.cells(SLIDER)
def test_a_slider_moves_after_the_page_is_reloaded(notebook: Notebook) -> None:
    shown = notebook.cell(0).locator(".widget-output").first
    notebook.run(0)
    expect(shown).to_have_text("x is 3\n")
    notebook.page.keyboard.press("Control+s")
    expect(notebook.page.locator(".lm-TabBar-tab.jp-mod-dirty")).to_have_count(0)
    notebook.page.on("dialog", lambda dialog: dialog.accept())
    notebook.page.reload()
    notebook.connected()
    handle = notebook.cell(0).locator(".noUi-handle")
    expect(handle).to_have_attribute("aria-valuetext", "3")
    notebook.seen("reloaded")
    handle.focus()
    notebook.page.keyboard.press("ArrowRight")
    expect(shown).to_have_text("x is 4\n")
    notebook.seen("moved")


@pytest.mark.cells("name = input('name? ')\nprint('Hello', name)")
def test_input_has_a_box_in_the_page(notebook: Notebook) -> None:
    notebook.run(0)
    box = notebook.page.locator(".jp-Stdin-input")
    expect(box).to_be_visible()
    notebook.seen("asked")
    box.fill("Ada")
    box.press("Enter")
    expect(notebook.output(0).last).to_have_text("Hello Ada\n")
    notebook.seen("answered")


@pytest.mark.cells("unmistakable_name = 1", "")
def test_tab_completes_a_name_that_the_kernel_knows(notebook: Notebook) -> None:
    """JupyterLab waits for a second, which a kernel's first completion may take longer than: a person asks again."""
    notebook.run(0)
    notebook.has_run(0, 1)
    notebook.cell(1).locator(".cm-content").click()
    notebook.page.keyboard.type("unmista")
    expect(notebook.page.locator(".jp-mod-completer-enabled")).to_have_count(1)
    offered = notebook.page.locator(".jp-Completer-item", has_text="unmistakable_name").first
    for _ in range(20):
        notebook.page.keyboard.press("Tab")
        with suppress(PlaywrightTimeout):
            offered.wait_for(timeout=1_500)
            break
    notebook.seen("offered")
    notebook.page.keyboard.press("Enter")
    expect(notebook.cell(1).locator(".cm-content")).to_have_text("unmistakable_name")
    notebook.seen("completed")


@pytest.mark.cells("print('before', flush=True)\nimport os; os._exit(1)", "print('alive')")
def test_a_kernel_that_dies_is_told_and_started_again(notebook: Notebook) -> None:
    notebook.run(0)
    expect(notebook.output(0).first).to_contain_text("before")
    dialog = notebook.page.locator(".jp-Dialog")
    expect(dialog).to_contain_text("It will restart automatically")
    notebook.seen("told")
    dialog.locator(".jp-mod-accept").click()
    notebook.connected()
    notebook.run(1)
    expect(notebook.output(1)).to_have_text(["alive\n"])
    notebook.seen("alive")
