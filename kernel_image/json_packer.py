"""Serializes a kernel's messages as jupyter_client does, and lone surrogates as well.

In code, output or a traceback they would otherwise raise inside the kernel, which then never replies.
"""

from __future__ import annotations

import json
from typing import Any

from jupyter_client.jsonutil import json_clean, json_default
from jupyter_client.session import json_packer


def pack(message: Any) -> bytes:
    """A part of a message as JSON in UTF-8; lone surrogates become escapes."""
    try:
        packed: bytes = json_packer(message)
    except UnicodeEncodeError:
        return json.dumps(json_clean(message), default=json_default).encode()
    return packed
