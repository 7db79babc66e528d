"""The page at `/status` in Chromium, over made-up hours: what it shows, says and asks, and what it never does."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from http_face import Face, serving
from playwright.async_api import Browser, ConsoleMessage, Page, Route, async_playwright, expect
from status_hours import WallClock, live_through
from test_http_status import TOKENS

CHROMIUM_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
PATIENCE_MS = 60_000
HOUR_S, DAY_S = 3600, 86_400
REFUSED = "Failed to load resource"
"""What Chromium itself says of a request that was refused."""

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        reason = "no `chromium` to look at pages with: scripts/browser.sh installs it on Debian"
        if os.environ.get("CI"):
            pytest.fail(f"CI is set, and there is {reason}")
        pytest.skip(f"NO BROWSER: there is {reason}")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=CHROMIUM_OPTIONS)
        yield browser
        await browser.close()


class Watched:
    """A tab with its console, its errors, and the addresses that it has asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.addresses: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.addresses.append(request.url))

    def _note(self, message: ConsoleMessage) -> None:
        if not message.text.startswith(REFUSED):
            self.said.append(message.text)

    def is_clean(self, face: Face) -> bool:
        """Nothing in the console, which has what the policy forbids, and nobody else was asked."""
        assert self.said == []
        hosts = {urlsplit(address).netloc for address in self.addresses if not address.startswith("data:")}
        assert hosts == {urlsplit(face.url).netloc}
        return True


async def opened(browser: Browser, face: Face, **options: object) -> Watched:
    page = await browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})  # type: ignore[arg-type]
    await page.clock.install()
    tab = Watched(page)
    await page.goto(f"{face.url}/status")
    return tab


async def violations(page: Page) -> list[str]:
    """The rules of axe that the page breaks seriously."""
    found = (await Axe().run(page)).response["violations"]
    return [
        f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


async def test_it_shows_the_past_hour_and_day_and_follows_what_happens(browser: Browser) -> None:
    clock = WallClock(HOUR_S)
    async with serving(clock=clock) as face:
        face.history.sample()
        live_through(face, clock, HOUR_S)
        tab = await opened(browser, face)
        page = tab.page
        await expect(page.locator("#verdict")).to_have_text("✔ Ready: runs are taken")
        await expect(page.locator("figure")).to_have_count(12)
        for drawn in await page.locator("figure > svg").all():
            assert await drawn.locator("path.line, rect.bar").count() > 0
            assert await drawn.locator("rect.unknown").count() > 0, "the gap"
            assert re.search(r": .*\d.*A table follows", await drawn.get_attribute("aria-label") or "")
        ended = page.locator("figure", has_text="Runs that ended")
        ok = face.service.figures.tally.runs["python", "ok"]
        await expect(ended.locator("li").first).to_have_text(f"ok {ok:,}")
        await expect(page.locator("#stages tbody tr")).to_have_count(12)
        await expect(page.locator("#now")).to_contain_text("at most 8")
        await expect(page.locator("#figures")).to_contain_text("they begin anew with the process")

        summary = ended.locator("summary")
        await summary.focus()
        await page.keyboard.press("Enter")
        await expect(ended.locator("tbody tr").nth(40)).to_be_attached()
        await expect(ended.locator("td", has_text="not known").first).to_be_attached()
        face.service.figures.tally.deaths["gone"] += 1
        clock.at_s += 10
        face.history.sample()
        await page.clock.fast_forward(10_000)
        await expect(page.locator("figure", has_text="Deaths of kernels")).to_contain_text("gone 1")
        await expect(ended.locator("table")).to_be_visible()
        await expect(summary).to_be_focused()

        await page.get_by_label("the last hour").focus()
        await page.keyboard.press("ArrowRight")
        await expect(page.locator("#slots")).to_contain_text("A slot is 5 min")
        await page.get_by_role("button", name="Pause").click()
        asked = len(tab.addresses)
        await page.clock.fast_forward(60_000)
        assert len(tab.addresses) == asked
        face.service.state.ready, face.service.state.reasons = False, ("The engine does not answer.",)
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#verdict")).to_contain_text("Not ready: runs are refused")
        await expect(page.locator("#verdict")).to_contain_text("The engine does not answer.")
        assert tab.is_clean(face)


async def test_it_says_since_when_the_gateway_is_silent_and_goes_on_with_the_next(browser: Browser) -> None:
    async with serving() as face:
        face.history.sample()
        tab = await opened(browser, face)
        page = tab.page
        await expect(page.locator("#slots")).to_contain_text("The first values come within 10 s.")
        await page.route("**/status.json*", _refuse)
        await page.clock.fast_forward(10_000)
        await expect(page.locator("#verdict")).to_contain_text("The gateway has answered 503 since")
        await expect(page.locator("#verdict")).to_contain_text("The database does not answer.")
        await page.unroute("**/status.json*")
        await page.clock.fast_forward(10_000)
        await expect(page.locator("#verdict")).to_contain_text("Ready")
        await expect(page.locator("#figures")).not_to_have_class("stale")

    await page.clock.fast_forward(10_000)
    await expect(page.locator("#verdict")).to_contain_text("The gateway has not answered since")
    await expect(page.locator("#next")).to_have_text(re.compile(r"It is asked again after \d+ s\."))
    said, after = [await page.locator(part).text_content() or "" for part in ("#verdict", "#next")]
    await page.clock.fast_forward(60_000)
    await expect(page.locator("#next")).not_to_have_text(after)
    assert await page.locator("#verdict").text_content() == said
    await expect(page.locator("#figures")).to_have_class("stale")
    await expect(page.locator("#now")).to_contain_text("2 ready")
    assert await violations(page) == []
    async with serving(port=face.port) as second:
        second.history.sample()
        await page.clock.fast_forward(60_000)
        await expect(page.locator("#verdict")).to_contain_text("Ready")
        await expect(page.locator("#figures")).not_to_have_class("stale")
        await expect(page.locator("#next")).to_have_text("")
        assert tab.is_clean(second)


async def _refuse(route: Route) -> None:
    await route.fulfill(status=503, json={"error": "The database does not answer.", "code": "unavailable"})


async def test_it_asks_for_a_token_and_keeps_it_out_of_addresses(browser: Browser) -> None:
    async with serving(tokens=TOKENS) as face:
        face.history.sample()
        tab = await opened(browser, face)
        page = tab.page
        await expect(page.locator("#verdict")).to_contain_text("A token is needed (401)")
        await expect(page.locator("#figures")).to_be_hidden()
        await expect(page.get_by_label("Token")).to_be_focused()
        assert await violations(page) == []
        await page.keyboard.type("ünknown")
        await page.keyboard.press("Enter")
        await expect(page.locator("#verdict")).to_contain_text("This is no token")
        await page.get_by_label("Token").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#verdict")).to_contain_text("401: this token is not valid here")
        await page.get_by_label("Token").fill("alpha")
        await page.keyboard.press("Enter")
        await expect(page.locator("#now")).to_contain_text("2 ready")
        await expect(page.get_by_label("Token")).to_be_hidden()
        await page.reload()
        await expect(page.locator("#now")).to_contain_text("2 ready")
        assert not [address for address in tab.addresses if "alpha" in address or "wrong" in address]
        assert await page.evaluate("localStorage.length + document.cookie.length") == 0
        await page.get_by_role("button", name="Forget the token").click()
        await expect(page.locator("#verdict")).to_contain_text("A token is needed (401)")
        await expect(page.locator("#figures")).to_be_hidden()
        assert await page.evaluate("sessionStorage.length") == 0
        assert tab.is_clean(face)


async def test_everybody_can_read_it_in_light_and_dark_and_on_a_small_screen(browser: Browser, tmp_path: Path) -> None:
    clock = WallClock(HOUR_S)
    async with serving(clock=clock) as face:
        face.history.sample()
        live_through(face, clock, HOUR_S)
        for scheme, width in (("light", 1280), ("dark", 1280), ("light", 400)):
            tab = await opened(browser, face, viewport={"width": width, "height": 900}, color_scheme=scheme)
            page = tab.page
            await expect(page.locator("figure path.line").first).to_be_attached()
            await page.locator("summary").first.click()
            await page.screenshot(path=tmp_path / f"status-{scheme}-{width}.png", full_page=True)
            assert await violations(page) == [], (scheme, width)
            assert tab.is_clean(face)
            await page.set_viewport_size({"width": min(width, 360), "height": 800})
            assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            await page.close()
