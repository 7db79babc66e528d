"""The kernel's standard streams, put back before and after each run, whatever the code has made of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_OUTPUTS = ("stdout", "stderr")
_DESCRIPTORS = (0, 1, 2)


def open_copy_of_standard(file: Any, *arguments: Any, **options: Any) -> Any:
    """`open`, but closing what it made of a standard stream's descriptor leaves the stream open.

    IPython's own refuses such descriptors.
    """
    if type(file) is int and file in _DESCRIPTORS:
        file = os.dup(file)
        options["closefd"] = True
    return open(file, *arguments, **options)  # noqa: PTH123 - it stands for `open`


class StandardStreams:
    """The streams that a run begins with, descriptors of their pipes, and which files those are: its state."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {name: getattr(sys, name) for name in ("stdin", *_OUTPUTS)}
        for name in _OUTPUTS:
            # Scripts write `sys.stdout = sys.__stdout__`, and the interpreter's own has a buffer that nobody flushes.
            setattr(sys, f"__{name}__", self._kept[name])

        self._pipes = {descriptor: os.dup(descriptor) for descriptor in _DESCRIPTORS}
        self._identities = {descriptor: _identity(descriptor) for descriptor in _DESCRIPTORS}

    def put_back(self) -> None:
        """Make the kernel's streams the standard ones, after what others have buffered."""
        for name in _OUTPUTS:
            current = getattr(sys, name, None)
            if current is not self._kept[name]:
                with suppress(Exception):  # whatever an object of the user's own raises
                    current.flush()  # type: ignore[union-attr]
                setattr(sys, name, self._kept[name])
        for descriptor, pipe in self._pipes.items():
            wanted = self._identities[descriptor]
            # The code may have closed the copy, too, and its number may be another file's now.
            if _identity(descriptor) != wanted and _identity(pipe) == wanted:
                os.dup2(pipe, descriptor)
        if self._kept["stdin"].closed:
            with suppress(OSError):
                self._kept["stdin"] = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open
        sys.stdin = self._kept["stdin"]

    @contextmanager
    def own(self) -> Iterator[None]:
        """Let the kernel use its own output streams, and leave what the code has put in their place."""
        current = {name: getattr(sys, name, None) for name in _OUTPUTS}
        for name in _OUTPUTS:
            setattr(sys, name, self._kept[name])
        try:
            yield
        finally:
            for name in _OUTPUTS:
                setattr(sys, name, current[name] or self._kept[name])

    def put_back_missing(self) -> None:
        """Put back what is not there at all, and leave what somebody has put in a stream's place."""
        if any(getattr(sys, name, None) is None for name in _OUTPUTS):
            self.put_back()


def _identity(descriptor: int) -> tuple[int, int] | None:
    """Which file a descriptor is open for, None when it is not."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino
