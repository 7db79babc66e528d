"""The connection file: the addresses of a kernel's sockets, and the key that signs its clients' messages.

https://jupyter-client.readthedocs.io/en/stable/kernels.html#connection-files
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sessions.errors import SetUpFailed

CHANNELS = ("shell", "control", "stdin", "iopub", "hb")


@dataclass(frozen=True, slots=True)
class Connection:
    """`addresses` are ZMQ's, by channel; `digest` is the name of the hash function that signatures are made with."""

    addresses: Mapping[str, str]
    key: bytes = field(repr=False)
    digest: str


def read_connection(path: Path) -> Connection:
    """Read a connection file. Raises SetUpFailed."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        joint = "-" if info["transport"] == "ipc" else ":"
        addresses = {
            channel: f"{info['transport']}://{info['ip']}{joint}{int(info[f'{channel}_port'])}" for channel in CHANNELS
        }
        digest = (info.get("signature_scheme") or "hmac-sha256").removeprefix("hmac-")
        hashlib.new(digest)
        return Connection(addresses, info["key"].encode(), digest)
    except OSError as error:
        raise SetUpFailed(f"The connection file {path} cannot be read ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SetUpFailed(f"The file {path} is no connection file of Jupyter's.") from error
