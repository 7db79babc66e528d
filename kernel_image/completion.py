"""What jedi parses for a completion, parsed when the image is built; and first completions where kernels are forked.

jedi reads the stubs of the standard library as text, and the source of packages; parso keeps the outcome in files. The
build runs this module by itself, so it imports nothing of ours.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

CACHE = Path(__file__).resolve().parent.parent / "completion-cache"
"""The image's cache, which the build writes and nobody else can."""

_COMPLETED = {
    "": ("pri", "[].app", "''.jo", "{}.ke", "import os\nos.pa", "from collections import de"),
    "numpy": ("numpy.arr", "from numpy import ar", "import numpy as np\nnp.zeros(3).su"),
    "pandas": ("pandas.Da", "from pandas import Da", "import pandas as pd\npd.DataFrame().gr"),
    "matplotlib.pyplot": ("import matplotlib.pyplot as plt\nplt.pl",),
}
"""What is completed beforehand, by the module that it needs. It is typical of what people complete first."""


def adapt(parso_cache: Any) -> None:
    """Have parso look into the image's cache first. What is not there goes to the user's, as ever."""
    if not CACHE.is_dir():
        return
    load = parso_cache._load_from_file_system  # noqa: SLF001 - it has no setting for a second directory

    def load_from_either(hashed_grammar: str, path: Any, p_time: float, cache_path: Any = None) -> Any:
        with suppress(OSError):
            if (found := load(hashed_grammar, path, p_time, cache_path=CACHE)) is not None:
                return found
        return load(hashed_grammar, path, p_time, cache_path=cache_path)

    parso_cache._load_from_file_system = load_from_either  # noqa: SLF001 - likewise


def warm_up() -> Iterator[None]:
    """Complete what people complete first, of the modules that are imported; what was parsed for it stays in memory.

    Each step takes some tenths of a second.
    """
    with suppress(ImportError):  # an image of the operator's may lack jedi
        from jedi import Interpreter  # noqa: PLC0415 - only wanted where somebody pays for it once

        yield
        for name, sources in _COMPLETED.items():
            if not name or name in sys.modules:
                top = name.partition(".")[0]
                namespace: dict[str, ModuleType] = {top: sys.modules[top]} if name else {}
                for source in sources:
                    with suppress(Exception):  # of another version of jedi: its first completion takes longer then
                        for found in Interpreter(source, [namespace]).complete():
                            _ = found.type  # which IPython asks for, and which may lead to other files
                    yield


def main() -> None:
    """Write the cache of an image: `completion.py <directory> <modules that it preloads>`."""
    import jedi.settings  # noqa: PLC0415

    _, jedi.settings.cache_directory, *modules = sys.argv
    for module in modules:
        importlib.import_module(module)
    for _ in warm_up():
        pass


if __name__ == "__main__":
    main()
