"""Chromium, and what it did on a page: errors, refusals by the page's policy, and every address that was asked for.

Playwright keeps a loop of its own running between the steps, so tests with a browser are not asynchronous.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - one of the clients, which not all tests need

    executable = shutil.which("chromium")
    if executable is None:
        reason = "no `chromium` to use pages with: scripts/browser.sh installs it on Debian"
        if os.environ.get("CI"):
            pytest.fail(f"CI is set, and there is {reason}")
        pytest.skip(f"NO BROWSER: there is {reason}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


class Watch:
    """What a context's pages have done so far."""

    def __init__(self, context: BrowserContext, expected: str) -> None:
        self.errors: list[str] = []
        self.urls: list[str] = []
        self._expected = re.compile(expected) if expected else None
        context.on("console", self._heard)
        context.on("weberror", lambda error: self.errors.append(f"uncaught: {error.error}"))
        context.on("request", lambda request: self.urls.append(request.url))
        context.on("page", lambda page: page.on("websocket", lambda socket: self.urls.append(socket.url)))

    def _heard(self, message: ConsoleMessage) -> None:
        text = f"{message.type}: {message.text} ({message.location.get('url')})"
        is_expected = self._expected is not None and self._expected.search(text) is not None
        if message.type in ("error", "warning") and not is_expected:
            self.errors.append(text)

    def check(self, origin: str) -> None:
        """Nothing failed, no policy was violated (Chromium logs that as an error), and nobody else was asked."""
        assert self.errors == [], self.errors
        hosts = {urlsplit(url).netloc for url in self.urls if not url.startswith(("data:", "blob:", "about:"))}
        assert hosts <= {urlsplit(origin).netloc}, self.urls


@contextmanager
def watched_page(browser: Browser, origin: str, expected: str = "", **options: Any) -> Iterator[tuple[Page, Watch]]:
    """A page in a context of its own. `expected` is a pattern of errors in the console that are part of the test."""
    from playwright.sync_api import expect  # noqa: PLC0415 - as above

    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    watch = Watch(context, expected)
    try:
        yield context.new_page(), watch
        watch.check(origin)
    finally:
        context.close()
