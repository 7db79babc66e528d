"""Where a kernel listens: unix sockets, or ports of the loopback interface for kernels that know nothing else."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kernel_image.protocol import UNIX_PATH_MAX_BYTES

_CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
_LOOPBACK = "127.0.0.1"
_TCP_PORTS = range(10_000, 30_000)
"""Below those that Linux gives out by itself: whoever dials such a port before anybody listens may reach himself."""


class Endpoints(NamedTuple):
    """The addresses of one kernel process. `ip` is an address or, for unix sockets, the beginning of their paths."""

    transport: str
    ip: str
    ports: Mapping[str, int]

    def url(self, channel: str) -> str:
        """What ZMQ calls a channel's address."""
        return f"{self.transport}://{self.ip}{':' if self.transport == 'tcp' else '-'}{self.ports[channel]}"

    def connection_info(self) -> dict[str, Any]:
        """What a connection file says of it."""
        ports = {f"{channel}_port": port for channel, port in self.ports.items()}
        return {"transport": self.transport, "ip": self.ip, **ports}

    def socket_files(self) -> list[Path]:
        """The files that are left when the kernel has ended."""
        return [] if self.transport == "tcp" else [Path(f"{self.ip}-{port}") for port in self.ports.values()]


def unix_endpoints(prefix: Path) -> Endpoints:
    """Unix sockets `<prefix>-<n>`. Raises ValueError when that is longer than such a path may be."""
    if len(os.fsencode(f"{prefix}-9")) > UNIX_PATH_MAX_BYTES:
        raise ValueError(f"the kernel's socket path {prefix} is longer than {UNIX_PATH_MAX_BYTES} bytes")
    return Endpoints("ipc", str(prefix), {channel: number for number, channel in enumerate(_CHANNELS, 1)})


def tcp_endpoints() -> Endpoints:
    """Ports that are free now. In a sandbox nobody else looks for some; elsewhere the kernel fails to start, seldom."""
    free: list[int] = []
    for port in random.sample(_TCP_PORTS, len(_TCP_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind((_LOOPBACK, port))
            except OSError:
                continue
        free.append(port)
        if len(free) == len(_CHANNELS):
            break
    return Endpoints("tcp", _LOOPBACK, dict(zip(_CHANNELS, free, strict=True)))
