"""What Python processes that the code starts do first: lines that they print to a pipe leave at once, and whole.

Otherwise they would come with the next 8 kB, in a later run or never. It is found by PYTHONPATH, hides itself there,
and hands over to the `sitecustomize` that it stands before.
"""

# ruff: noqa: INP001, PLC0415, PTH100, PTH120

import os
import stat
import sys


def _buffer_lines() -> None:
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]
        except (AttributeError, OSError, ValueError):
            pass  # it has no such stream, or is older than Python 3.7


def _hand_over() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    itself = sys.modules.pop(__name__)
    try:
        import sitecustomize  # type: ignore[import-not-found] # noqa: F401
    except ImportError:
        sys.modules[__name__] = itself


_buffer_lines()
if __name__ == "sitecustomize":
    _hand_over()
