"""Which packages the gateway's own interpreter has, and in which version Cellblock itself is one of them."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def own_version() -> str:
    """The installed version; a checkout that was never installed has none."""
    try:
        return version("cellblock")
    except PackageNotFoundError:
        return "(not installed)"


def is_installed(package: str) -> bool:
    """Whether it is there."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
