"""Environment variables that one run has, and no run after it.

Processes and threads that the run leaves behind keep what they have seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from os import unsetenv
from typing import Any

_ENVIRONMENT = os.environ
"""Code may put something else in the place of `os.environ`."""


def taken_from(request: Mapping[str, Any]) -> dict[str, str]:
    """What a request's metadata has of it. It is taken out, since code can read the request."""
    options = request.get("metadata", {}).get("cellblock")
    env = options.pop("env", None) if isinstance(options, dict) else None
    return {str(name): str(value) for name, value in env.items()} if isinstance(env, dict) else {}


class RunEnvironment:
    """Its state: what the run's variables have displaced, by name, until that is put back; None where nothing was."""

    def __init__(self) -> None:
        self._displaced: dict[str, str | None] = {}

    def set(self, variables: Mapping[str, str]) -> None:
        """Set them, until `put_back`."""
        for name, value in variables.items():
            self._displaced.setdefault(name, _ENVIRONMENT.get(name))
            _ENVIRONMENT[name] = value
            if os.environ is not _ENVIRONMENT:
                with suppress(Exception):  # it may be anything of the code's
                    os.environ[name] = value

    def put_back(self) -> None:
        """Have all as it was before, whatever the code has done to these names. An interrupt does not end this."""
        while self._displaced:
            with suppress(KeyboardInterrupt):
                name, value = next(iter(self._displaced.items()))
                _put_back(_ENVIRONMENT, name, value)
                if value is None:
                    unsetenv(name)  # the code may have called `putenv`, which `os.environ` does not know of
                if os.environ is not _ENVIRONMENT:
                    with suppress(Exception):
                        _put_back(os.environ, name, value)
                del self._displaced[name]


def _put_back(environment: MutableMapping[str, str], name: str, value: str | None) -> None:
    if value is None:
        environment.pop(name, None)
    else:
        environment[name] = value
