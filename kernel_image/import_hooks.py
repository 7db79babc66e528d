"""Adapts libraries to the sandbox at the moment that code imports them, so that nothing is imported for the adapting.

Installed in the fork server, and by a `.pth` file in every Python process of the image, children of kernels included.
What is done to a library is in the module that `_ADAPTERS` names. One that fails leaves the library as it was.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # this runs at the start of every Python process, so it imports nothing that is not there already
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

CPU_COUNT_VARIABLE = "PYTHON_CPU_COUNT"
"""How many processors Python says there are. Python reads it since 3.13, where it is not isolated (`-I`)."""

_ADAPTERS = {
    "IPython.core.interactiveshell": "exception_groups",
    "matplotlib.font_manager": "fonts",
    "matplotlib._mathtext": "fonts",
    "matplotlib.backend_bases": "figures",
    "matplotlib.pyplot": "figures",
    "nest_asyncio": "event_loop",
    "nest_asyncio2": "event_loop",
    "parso.cache": "completion",
    "pip._internal.network.session": "offline_pip",
    "plotly.io._renderers": "figures",
    "psutil": "import_hooks",
}

_STAND_INS = {"nest_asyncio": "nest_asyncio2"}
"""Modules under whose name another is found where they are not installed; it has the same functions."""


def install() -> None:
    """Adapt what is imported from now on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    if (count := _cpu_count()) is None:
        return
    if os.cpu_count() != count:
        for name in ("cpu_count", "process_cpu_count"):
            if hasattr(os, name):
                setattr(os, name, _cpu_count)
    if not hasattr(os.sched_getaffinity, "__wrapped__"):
        os.sched_getaffinity = _affinity(os.sched_getaffinity)


def adapt(psutil: ModuleType) -> None:
    """Have psutil count the processors that `os` counts."""
    counted, affinity = psutil.cpu_count, psutil.Process.cpu_affinity

    def cpu_count(*args: Any, **options: Any) -> Any:
        count, real = _cpu_count(), counted(*args, **options)
        return real if count is None or real is None else min(count, real)

    def cpu_affinity(self: Any, cpus: Any = None) -> Any:
        real = affinity(self, cpus)
        return real if real is None else sorted(real)[: _cpu_count()]

    psutil.cpu_count = cpu_count  # type: ignore[attr-defined]
    psutil.Process.cpu_affinity = cpu_affinity


def current_shell() -> Any:
    """The shell of the kernel that this process is; None in any other process."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython.core.getipython import get_ipython  # noqa: PLC0415 - there already in a kernel

    return get_ipython()


def _cpu_count() -> int | None:
    value = os.environ.get(CPU_COUNT_VARIABLE, "")
    return int(value) if value.isdecimal() and int(value) > 0 else None


def _affinity(real: Any) -> Any:
    """`os.sched_getaffinity`, whose answer scripts count. The sandbox's share of time is not tied to processors."""

    def sched_getaffinity(pid: int, /) -> set[int]:
        return set(sorted(real(pid))[: _cpu_count()])

    sched_getaffinity.__wrapped__ = real  # type: ignore[attr-defined]
    return sched_getaffinity


class _Finder:
    """Finds nothing by itself: it has the others look, and adds the adapter to what the module's loader does."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the next finder has for one of the modules to adapt."""
        if name not in _ADAPTERS:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    _extend(spec.loader)
                return spec
        return self._stand_in(name)

    def _stand_in(self, name: str) -> ModuleSpec | None:
        if (other := _STAND_INS.get(name)) is None or (found := self.find_spec(other)) is None:
            return None
        from importlib.util import spec_from_file_location  # noqa: PLC0415 - for the few that need it

        if (spec := spec_from_file_location(name, found.origin)) is not None:
            _extend(spec.loader)
        return spec


def _extend(loader: Any) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _adapt(module)

    loader.exec_module = exec_module


def _adapt(module: ModuleType) -> None:
    try:
        adapter = __import__(f"kernel_image.{_ADAPTERS[module.__name__]}", fromlist=["adapt"])
        adapter.adapt(module)
    except Exception:  # noqa: BLE001, S110 - another version may look different in any way; standard error is the code's
        pass
