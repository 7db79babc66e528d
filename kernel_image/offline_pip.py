"""pip in a sandbox without a network: it says so, instead of trying five times for ten seconds."""

from __future__ import annotations

import socket
from types import ModuleType
from typing import Any

_MESSAGE = (
    "This sandbox has no network, so nothing can be downloaded or installed from an index. "
    "`pip list` shows the packages that are there."
)


def adapt(module: ModuleType) -> None:
    """Adapt `pip._internal.network.session`."""
    session: Any = module.PipSession
    request = session.request

    def request_or_say_why_not(self: Any, method: str, url: str, *args: Any, **options: Any) -> Any:
        if str(url).startswith(("http:", "https:")) and is_offline():
            from pip._internal.exceptions import InstallationError  # noqa: PLC0415 - pip's own, in a pip process

            raise InstallationError(_MESSAGE)
        return request(self, method, url, *args, **options)

    session.request = request_or_say_why_not


def is_offline() -> bool:
    """Whether there is no network interface but the loopback one."""
    try:
        return all(name == "lo" for _, name in socket.if_nameindex())
    except OSError:
        return False
