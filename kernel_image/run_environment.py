"""Environment variables that one run has, and no run after it.

Processes and threads that the run leaves behind keep what they have seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from os import fsdecode, fsencode, putenv, unsetenv
from typing import Any

_VARIABLES: dict[bytes, bytes] = vars(os.environ)["_data"]
"""What is behind `os.environ`. Code may put something else in its place, and change or break what its methods do."""


def taken_from(request: Mapping[str, Any]) -> dict[str, str]:
    """What a request's metadata has of it. It is taken out, since code can read the request."""
    options = request.get("metadata", {}).get("cellblock")
    env = options.pop("env", None) if isinstance(options, dict) else None
    return {str(name): str(value) for name, value in env.items()} if isinstance(env, dict) else {}


class RunEnvironment:
    """Its state: what the run's variables have displaced, by name, until that is put back; None where nothing was."""

    def __init__(self) -> None:
        self._displaced: dict[str, bytes | None] = {}

    def set(self, variables: Mapping[str, str]) -> None:
        """Set them, until `put_back`."""
        for name, value in variables.items():
            self._displaced.setdefault(name, _VARIABLES.get(fsencode(name)))
            _write(name, fsencode(value))
            if not _is_usual():
                with suppress(Exception):  # it may be anything of the code's
                    os.environ[name] = value

    def put_back(self) -> None:
        """Have all as it was before, whatever the code has done to these names. An interrupt does not end this."""
        while self._displaced:
            with suppress(KeyboardInterrupt):
                name, value = next(iter(self._displaced.items()))
                _write(name, value)
                if not _is_usual():
                    with suppress(Exception):
                        _put_back(os.environ, name, None if value is None else fsdecode(value))
                del self._displaced[name]


def _is_usual() -> bool:
    """Whether `os.environ` is what shows `_VARIABLES`."""
    try:
        return vars(os.environ)["_data"] is _VARIABLES
    except (AttributeError, KeyError, TypeError):
        return False


def _write(name: str, value: bytes | None) -> None:
    """Set a variable, or remove it: for child processes too, whatever `putenv` the code may have called."""
    key = fsencode(name)
    if value is None:
        _VARIABLES.pop(key, None)
        unsetenv(key)
    else:
        _VARIABLES[key] = value
        putenv(key, value)


def _put_back(environment: MutableMapping[str, str], name: str, value: str | None) -> None:
    if value is None:
        environment.pop(name, None)
    else:
        environment[name] = value
