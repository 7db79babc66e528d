"""The playground as a person has it: the page in a browser, and the gateways that it is served by."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Locator, Page, expect
from serve_rig import Gateway, fork
from store_fixtures import copy_template_data_dir

RECORD_SOCKETS = """
window.sockets = [];
window.WebSocket = class extends WebSocket {
  constructor(...given) {
    super(...given);
    window.sockets.push(this);
  }
};
"""


class Playground:
    """One tab with the page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.state = page.locator("#state")
        self.output = page.locator("#output")
        self.problem = page.locator("#problem")

    def open(self, fragment: str = "") -> None:
        self.page.add_init_script(RECORD_SOCKETS)
        self.page.goto(f"{self.url}/{fragment}")
        expect(self.page.locator(".cm-content")).to_be_visible()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def write(self, code: str) -> None:
        """Replace what is in the editor."""
        self.page.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.press("Delete")
        self.page.keyboard.insert_text(code)

    def begin(self, code: str) -> None:
        self.write(code)
        self.page.keyboard.press("Control+Enter")

    def run(self, code: str, state: str = "Finished") -> None:
        """Run it to its end."""
        self.begin(code)
        expect(self.button("Run")).to_be_enabled()
        expect(self.state).to_have_text(state)

    def make_session(self) -> str:
        """Make a session, and return its name."""
        self.button("New session").click()
        expect(self.button("Restart")).to_be_visible()
        name: str = self.page.locator("#session").input_value()
        assert name.startswith("play-")
        return name

    def break_connections(self) -> None:
        """Close its WebSockets, as a network does that fails."""
        assert self.page.evaluate("sockets.filter(s => s.readyState === 1).map(s => s.close()).length") > 0


@contextmanager
def process_gateway(**variables: str) -> Iterator[Gateway]:
    """A gateway on the process engine, with the largest output limit that there is, and with time for slow machines."""
    parent = Path(tempfile.mkdtemp(prefix="cb-"))
    copy_template_data_dir(parent / "data")
    limits = {"CELLBLOCK_LIMITS_OUTPUT_BYTES": "8M", "CELLBLOCK_LIMITS_TIMEOUT": "170"}
    gateway = fork(parent / "data", **limits, **variables)
    try:
        yield gateway
        assert gateway.stop(signal.SIGTERM) == 0, gateway.log.read_text()[-4000:]
    finally:
        if gateway.process.poll() is None:
            gateway.process.kill()
            gateway.process.wait()
        shutil.rmtree(parent, ignore_errors=True)
