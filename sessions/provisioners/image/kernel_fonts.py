"""Writes matplotlib's settings file and font cache beside the Python environment that runs it.

So the first plot need not look for fonts, and Chinese labels just work. It runs while the kernel image is built, and
when the process engine's environment is made.

Not part of Cellblock at run time. Does nothing but say so where matplotlib or the font is missing.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

HOME = Path(sys.prefix).parent
FONT = "WenQuanYi Micro Hei"

# matplotlib looks a missing glyph up in the next entry of `font.family`, but not in the next of `font.sans-serif`.
SETTINGS = f"font.family: sans-serif, {FONT}\n"

# Fonts that published examples ask for by name, and that are not free to ship: they resolve to ours.
ALIASES = (
    "SimHei",
    "SimSun",
    "Microsoft YaHei",
    "PingFang SC",
    "Heiti SC",
    "STHeiti",
    "Arial Unicode MS",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
)


def main() -> None:
    """Write the settings file, then the font cache with the aliases in it."""
    settings = HOME / "matplotlibrc"
    settings.write_text("")
    cache_dir = HOME / "matplotlib"
    cache_dir.mkdir(exist_ok=True)
    os.environ["MPLCONFIGDIR"] = str(cache_dir)
    try:
        from matplotlib import font_manager  # noqa: PLC0415 - reads MPLCONFIGDIR as it is imported
    except ImportError:
        print("matplotlib is not installed: no font cache made")  # noqa: T201
        return
    entries = [entry for entry in font_manager.fontManager.ttflist if entry.name == FONT]
    if not entries:
        print(f"{FONT} is not installed: Chinese labels will be boxes")  # noqa: T201
        return
    settings.write_text(SETTINGS)
    known = {entry.name for entry in font_manager.fontManager.ttflist}
    for alias in ALIASES:
        if alias not in known:
            font_manager.fontManager.ttflist.append(dataclasses.replace(entries[0], name=alias))
    (cache,) = cache_dir.glob("fontlist-*.json")
    font_manager.json_dump(font_manager.fontManager, cache)


if __name__ == "__main__":
    main()
