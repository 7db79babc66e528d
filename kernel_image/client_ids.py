"""The msg_ids of clients: the kernel sees those, and everybody outside it the gateway's. Pure.

Widgets put the msg_id of the message that they answer into their state, and front ends look for messages under it. The
gateway sends a client's id beside its own; see `CLIENT_ID` in protocol.py.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict

from kernel_image.kernel_messages import JSON_ERRORS, is_idle
from kernel_image.protocol import CLIENT_ID

MOST = 4096
"""How many ids are remembered, for output that comes late and for requests that are not answered."""

_USABLE = re.compile(r"(?!\d{4}-\d{2}-\d{2}T)(?!.*\.\d+\.[0-9a-f]{8}$)[ -~]{1,128}")
"""ASCII; no date, which jupyter_client would give back as another text; and nothing like the gateway's id of a run."""

_MAX_CACHED_BYTES = 4096


class ClientIds:
    """Puts clients' ids into requests to one kernel process, and the gateway's back into what that sends.

    The state: the gateway's id by the client's, of the requests that the kernel has not finished and of the last that
    it has; and the last parent header that was looked up.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[str, str] = OrderedDict()
        self._closed: OrderedDict[str, str] = OrderedDict()
        self._last_parent = (b"", b"")

    def __len__(self) -> int:
        return len(self._open) + len(self._closed)

    def clear(self) -> None:
        """The kernel process has ended: nothing more comes of its requests."""
        self._open.clear()
        self._closed.clear()
        self._last_parent = (b"", b"")

    def to_kernel(self, channel: str, parts: list[bytes]) -> list[bytes]:
        """A request as the kernel is to see it; under the gateway's id, if the client's is odd or another's, too."""
        if CLIENT_ID.encode() not in parts[0]:
            return parts
        try:
            header = json.loads(parts[0])
            theirs = header.pop(CLIENT_ID)
            ours = header["msg_id"]
        except JSON_ERRORS:
            return parts
        if channel == "stdin":  # nothing answers that
            header["msg_id"] = theirs if self._is_free(theirs) else ours
        elif self._is_free(theirs) and self._remember(theirs, ours):
            header["msg_id"] = theirs
        elif isinstance(ours, str):
            self._remember(ours, ours)  # the kernel sees this one: it is not free for others
        return [json.dumps(header).encode(), *parts[1:]]

    def from_kernel(self, parts: list[bytes]) -> list[bytes]:
        """A message of the kernel with the gateway's id in its parent header."""
        if len(parts[1]) > _MAX_CACHED_BYTES:
            return [parts[0], self._translated(parts[1]), *parts[2:]]
        raw, translated = self._last_parent
        if raw != parts[1]:
            translated = self._translated(parts[1])
            self._last_parent = (parts[1], translated)
        return parts if translated is parts[1] else [parts[0], translated, *parts[2:]]

    def note_answered(self, channel: str, parts: list[bytes]) -> None:
        """Look whether this message of the kernel, not translated yet, is the last of a request."""
        if channel != "iopub" or b'"status"' not in parts[0] or not is_idle(parts[3]):
            return
        try:
            theirs = json.loads(parts[1])["msg_id"]
            ours = self._open.pop(theirs, None)
        except JSON_ERRORS:
            return
        if ours is not None:
            self._closed[theirs] = ours

    def _is_free(self, theirs: object) -> bool:
        return isinstance(theirs, str) and _USABLE.fullmatch(theirs) is not None and theirs not in self._open

    def _remember(self, theirs: str, ours: str) -> bool:
        """False when too many requests are unanswered."""
        if self._closed.pop(theirs, None) is None and len(self) >= MOST:
            if not self._closed:
                return False
            self._closed.popitem(last=False)
        self._open[theirs] = ours
        self._last_parent = (b"", b"")
        return True

    def _translated(self, parent: bytes) -> bytes:
        try:
            header = json.loads(parent)
            theirs = header["msg_id"]
            ours = self._open.get(theirs) or self._closed.get(theirs)
            return parent if ours in (None, theirs) else json.dumps({**header, "msg_id": ours}).encode()
        except JSON_ERRORS:
            return parent
