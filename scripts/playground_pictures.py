"""Take the pictures of the playground that README and docs/playground.md show: `playground_pictures.py URL`.

The gateway at URL needs no token, and its sandboxes have pandas and matplotlib. Chromium is run by that name.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, expect, sync_playwright

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
SIZE = {"width": 1280, "height": 800}
PATIENCE_MS = 60_000
SESSION = "weather"
CODE = """\
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

rng = np.random.default_rng(7)
days = pd.date_range("2026-01-01", periods=365)
season = 9 - 8 * np.cos(2 * np.pi * np.arange(365) / 365)
df = pd.DataFrame({"mean": season + rng.normal(0, 2.5, 365)}, days)
df["smooth"] = df["mean"].rolling(14, center=True).mean()

print(f"{len(df)} days, up to {df['mean'].max():.1f} °C")
display(df.resample("QS").mean().round(1))

df.plot(figsize=(7, 3), color=["#9ec5ff", "#0550ae"], ylabel="°C")
plt.tight_layout()
plt.show()
"""


def take(browser: Browser, url: str, scheme: str) -> None:
    """One picture, in this colour scheme."""
    page = browser.new_page(viewport=SIZE, color_scheme=scheme)
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page.goto(url)
    expect(page.locator("#language")).to_have_value("python")
    page.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.insert_text(CODE)
    page.locator("#session").select_option(SESSION)
    page.get_by_role("button", name="Run").click()
    expect(page.locator("#state")).to_have_text("Finished")
    page.locator("figure img").evaluate("image => image.decode()")
    page.locator("#files summary").click()
    expect(page.locator("#files-list li").first).to_be_visible()
    page.locator("h1").click()
    page.locator("#output").evaluate("output => { output.scrollTop = 0; }")
    page.screenshot(path=PICTURES / f"playground-{scheme}.png")
    page.close()


def main(url: str) -> None:
    """Both pictures. The session is made with a file in it, and ended afterwards."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        asking = browser.new_page().request
        asking.post(f"{url}/sessions", data={"session_id": SESSION})
        asking.put(f"{url}/sessions/{SESSION}/files/stations.csv", data="station,height\nA,120\nB,1844\n")
        try:
            for scheme in ("light", "dark"):
                take(browser, url, scheme)
        finally:
            asking.delete(f"{url}/sessions/{SESSION}")
            browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
