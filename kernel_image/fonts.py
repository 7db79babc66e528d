"""Chinese, Japanese and Korean labels in matplotlib, whatever its settings: a font is added where it looks fonts up.

matplotlib asks its font manager for the fonts of each text, and takes a missing glyph from the next of them. A font
that knows these scripts comes last in every such list, and stands in for fonts that are known by name but not free.
"""
# ruff: noqa: SLF001 - matplotlib has no public name for what is replaced in the font manager

from __future__ import annotations

import logging
import os
import re
from types import ModuleType
from typing import Any

from kernel_image.import_hooks import current_shell

_INSTALLABLE = (
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "Droid Sans Fallback",
    "SimHei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
)
"""Fonts that know Chinese, the best first: the first that is installed is the one that is added."""

_KNOWN = re.compile(
    r"""
    sim(hei|sun|kai|fang|li|you)(-extb)? | nsimsun | fangsong.* | kaiti.* | dengxian | youyuan | lisu
    | (p?ming|sim)liu.*
    | microsoft\ (yahei|jhenghei)(\ ui|\ light)* | (ms|yu|hg|ud\ digi|biz\ ud).*(gothic|mincho).* | meiryo(\ ui)?
    | st(hei|xihei|heiti|song|kaiti|fangsong|zhongsong).* | (heiti|songti|kaiti|pingfang|lantinghei|yuanti)\ .*
    | hiragino\ .* | osaka | ipa(ex|am)?.*(gothic|mincho) | ipaexgothic | takao.* | vl\ .*gothic.*
    | arial\ unicode(\ ms)? | droid\ sans\ fallback.* | wenquanyi\ .* | wqy.* | ar\ pl\ .* | lxgw\ .*
    | (noto|source\ han)\ (sans|serif|mono)\ ?(mono\ )?(cjk.*|sc|tc|hk|jp|kr|cn|tw|k) | source\ han\ .* | noto.*cjk.*
    | alibaba\ puhuiti.* | harmonyos\ sans.* | smiley\ sans
    | malgun\ gothic.* | nanum.* | apple\ ?sd\ ?gothic\ neo | apple(gothic|myungjo) | batang(che)?
    | (gulim|dotum|gungsuh)(che)? | un\ ?(dotum|batang).* | baekmuk\ .* | d2coding
    | [^\x00-\x7f]*[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3].*
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Names of fonts for these scripts, as published examples have them."""

_FONT_FILE = re.compile(r"\.(ttf|ttc|otf)$", re.IGNORECASE)
_GENERIC = {"sans": "sans-serif", "sans serif": "sans-serif"}
_FIRST_CJK_CODE_POINT = 0x2E80


def adapt(module: ModuleType) -> None:
    """Adapt `matplotlib.font_manager` or `matplotlib._mathtext`."""
    if module.__name__ == "matplotlib.font_manager":
        _adapt_font_manager(module)
    else:
        _adapt_mathtext(module)


def _adapt_font_manager(font_manager: Any) -> None:
    manager, properties = font_manager.FontManager, font_manager.FontProperties
    find_one, find_all = manager.findfont, manager._find_fonts_by_props

    def findfont(self: Any, prop: Any, fontext: str = "ttf", directory: Any = None, *args: Any, **options: Any) -> Any:
        if fontext == "ttf" and directory is None:
            wanted = properties._from_any(prop)
            file = wanted.get_file()
            if file is None:
                name = _stand_in(self, wanted.get_family(), font_manager)
            elif os.path.exists(file):  # noqa: PTH110 - pathlib may not be imported
                name = None
            else:
                font_manager._log.warning("findfont: Font file %r not found.", str(file))
                name = installed(self) or self.defaultFamily["ttf"]
            if name is not None:
                prop = properties(family=[name])
        return find_one(self, prop, fontext, directory, *args, **options)

    def find_fonts_by_props(
        self: Any, prop: Any, fontext: str = "ttf", directory: Any = None, *args: Any, **options: Any
    ) -> list[Any]:
        found = find_all(self, prop, fontext, directory, *args, **options)
        if fontext == "ttf" and directory is None:
            for name in (installed(self), self.defaultFamily["ttf"]):
                if name is not None:
                    found.append(find_one(self, properties(family=[name]), fontext))
        return list(dict.fromkeys(found))

    manager.findfont, manager._find_fonts_by_props = findfont, find_fonts_by_props
    font_manager.findfont = font_manager.fontManager.findfont
    logging.getLogger(font_manager.__name__).addFilter(_OncePerRun())


def installed(manager: Any) -> str | None:
    """The font for these scripts that is there, if any."""
    names = {entry.name for entry in manager.ttflist}
    return next((name for name in _INSTALLABLE if name in names), None)


def _stand_in(manager: Any, families: list[str], font_manager: Any) -> str | None:
    """The font to use where the first of these families that can be had is one that ours stands in for."""
    names = {entry.name.lower() for entry in manager.ttflist}
    for family in families:
        generic = _GENERIC.get(family.lower(), family.lower())
        for name in font_manager.mpl.rcParams.get(f"font.{generic}", [family]) if _is_generic(generic) else [family]:
            if name.lower() in names:
                return None
            if _KNOWN.fullmatch(_FONT_FILE.sub("", name)):
                return installed(manager)
    return None


def _is_generic(family: str) -> bool:
    return family in ("serif", "sans-serif", "cursive", "fantasy", "monospace")


class _OncePerRun(logging.Filter):
    """Lets through one line about each font in each run: matplotlib looks it up for every text and every drawing."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[tuple[int | None, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this is the first line about its font in this run."""
        text = record.getMessage()
        font = re.search(r"'([^']+)'", text)
        key = (_run_number(), font[1] if font else text)
        is_new = key not in self._told
        self._told.add(key)
        return is_new


def _run_number() -> int | None:
    shell = current_shell()
    return None if shell is None else int(shell.execution_count)


def _adapt_mathtext(mathtext: Any) -> None:
    """Math looks each character up in one font, and then in others that know mathematics alone."""
    for fonts in vars(mathtext).copy().values():
        if isinstance(fonts, type) and "_get_glyph" in vars(fonts) and issubclass(fonts, mathtext.TruetypeFonts):
            _adapt_glyphs(fonts, mathtext)


def _adapt_glyphs(fonts: Any, mathtext: Any) -> None:
    get_glyph = fonts._get_glyph

    def _get_glyph(self: Any, fontname: str, font_class: str, sym: str) -> Any:
        if len(sym) == 1 and ord(sym) >= _FIRST_CJK_CODE_POINT:
            from matplotlib import font_manager  # noqa: PLC0415 - mathtext has imported it

            if (name := installed(font_manager.fontManager)) is not None:
                font = mathtext.get_font(font_manager.findfont(font_manager.FontProperties(family=[name])))
                if font.get_char_index(ord(sym)):
                    return font, ord(sym), False
        return get_glyph(self, fontname, font_class, sym)

    fonts._get_glyph = _get_glyph
