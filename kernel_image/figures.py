"""`show` in matplotlib and plotly: the kernel displays what it shows, whatever the code or the library has chosen.

Scripts choose matplotlib's "Agg", which shows nothing, or a backend with windows, which cannot be loaded in a sandbox.
plotly looks for a browser, or sends 4 MB of JavaScript.
"""
# ruff: noqa: SLF001 - matplotlib has no public name for what is replaced in its backends

from __future__ import annotations

import os
import re
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from kernel_image.import_hooks import current_shell

_PLOTLY_RENDERER = "plotly_mimetype+notebook_connected"
_SHOWS_WINDOWS = re.compile(r"(tk|gtk\d?|qt\d?|wx|osx|macosx)(agg|cairo)?")
_NEEDS_A_CLASSIC_NOTEBOOK = ("nbagg", "notebook")
_NEEDS_IPYMPL = ("ipympl", "widget")


def is_available(backend: object) -> bool:
    """Whether figures can be seen with a backend of matplotlib, or one that `%matplotlib` knows by another name."""
    name = str(backend).lower()
    if name in _NEEDS_A_CLASSIC_NOTEBOOK:
        return False
    if name in _NEEDS_IPYMPL:
        return find_spec("ipympl") is not None
    has_screen = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return has_screen or _SHOWS_WINDOWS.fullmatch(name) is None


def adapt(module: ModuleType) -> None:
    """Adapt `matplotlib.backend_bases`, `matplotlib.pyplot` or `plotly.io._renderers`."""
    match module.__name__:
        case "matplotlib.backend_bases":
            _adapt_managers(module.FigureManagerBase)
        case "matplotlib.pyplot":
            _adapt_pyplot(module)
        case _ if "ipykernel" in sys.modules:
            _adapt_plotly(module)


def _adapt_managers(manager: Any) -> None:
    show_all, show_one = manager.pyplot_show.__func__, manager.show
    start_main_loop = manager.start_main_loop.__func__

    def pyplot_show(cls: Any, *, block: bool | None = None) -> None:
        if cls.start_main_loop.__func__ is start_main_loop and _prepare_display():
            _inline().show()
        else:
            show_all(cls, block=block)

    def show(self: Any) -> None:
        """Display one figure; the inline backend itself displays it as the run ends."""
        figure = self.canvas.figure
        if type(self).show is show and not _is_inline() and _prepare_display():
            from IPython.display import display  # noqa: PLC0415 - there already in a kernel

            display(figure, metadata=_inline()._fetch_figure_metadata(figure))
            sys.modules["matplotlib.pyplot"].close(figure)
        else:
            show_one(self)

    manager.pyplot_show, manager.show = classmethod(pyplot_show), show


def _adapt_pyplot(pyplot: Any) -> None:
    switch = pyplot.switch_backend

    def switch_backend(newbackend: str) -> None:
        shell = current_shell()
        try:
            if shell is None or is_available(newbackend):
                switch(newbackend)
                return
        except ImportError:  # it needs a library that is not there
            if shell is None or str(newbackend).startswith("module://"):
                raise
        shell.enable_matplotlib("inline")

    switch_backend.__doc__ = switch.__doc__
    pyplot.switch_backend = switch_backend


def _adapt_plotly(module: Any) -> None:
    """Display figures, also for scripts that want a browser."""

    def render(_: Any, fig_dict: dict[str, Any]) -> None:
        bundle = module.renderers._build_mime_bundle(fig_dict, _PLOTLY_RENDERER)
        module.ipython_display.display(bundle, raw=True)

    module.BrowserRenderer.render = render
    if "PLOTLY_RENDERER" not in os.environ:
        module.renderers.default = _PLOTLY_RENDERER


def _is_inline() -> bool:
    pyplot, inline = sys.modules.get("matplotlib.pyplot"), sys.modules.get("matplotlib_inline.backend_inline")
    return pyplot is not None and inline is not None and getattr(pyplot._backend_mod, "show", None) is inline.show


def _prepare_display() -> bool:
    """Have the shell turn figures into pictures; returns whether there is a shell."""
    if (shell := current_shell()) is None:
        return False
    from IPython.core.pylabtools import select_figure_formats  # noqa: PLC0415 - there already in a kernel
    from matplotlib_inline.config import InlineBackend  # noqa: PLC0415 - likewise

    settings = InlineBackend.instance(parent=shell)
    select_figure_formats(shell, settings.figure_formats, **settings.print_figure_kwargs)
    return True


def _inline() -> Any:
    from matplotlib_inline import backend_inline  # noqa: PLC0415 - where figures are shown, and only there

    return backend_inline
