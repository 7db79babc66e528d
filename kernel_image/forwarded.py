"""What the gateway has forwarded for Jupyter clients: up to which message, and which question an answer is for. Pure.

It knows no execute_requests: those are outstanding.py's.
"""

from __future__ import annotations

import json

from kernel_image.kernel_messages import JSON_ERRORS
from kernel_image.protocol import QUESTION_ID

_MAX_CHARACTERS = 256


class Forwarded:
    """The state: the msg_ids of the last message forwarded, of the input_request without an answer, and of its asker.

    `last` is the gateway's own id, so that it knows after a break of the connection what has to be sent again. The next
    gateway learns from `question` whether an answer is wanted.
    """

    def __init__(self) -> None:
        self.last: str | None = None
        self.question: str | None = None
        self._asker: object = None

    def note(self, channel: str, parts: list[bytes]) -> list[bytes] | None:
        """A message for the kernel, as it may have it; None for an answer to a question that is no longer open."""
        try:
            header = json.loads(parts[0])
            msg_id = header["msg_id"]
            answered = header.pop(QUESTION_ID, None)
        except JSON_ERRORS:
            return parts
        if header.get("msg_type") != "execute_request" and isinstance(msg_id, str):
            self.last = msg_id
        if channel != "stdin" or answered is None:
            return parts
        if answered != self.question:
            return None
        self.question = None
        return [json.dumps(header).encode(), *parts[1:]]

    def note_question(self, channel: str, parts: list[bytes]) -> None:
        """Look whether this message of the kernel asks, or is the end of what has asked."""
        if channel not in ("stdin", "shell"):
            return
        try:
            parent = json.loads(parts[1]).get("msg_id")
            if channel == "stdin":
                question = json.loads(parts[0])["msg_id"]
                # Code can write this itself, and the hello has it.
                self.question = question if isinstance(question, str) and len(question) <= _MAX_CHARACTERS else ""
                self._asker = parent
            elif parent == self._asker:
                self.question = None
        except JSON_ERRORS:
            pass

    def kernel_ended(self) -> None:
        """Nobody waits for an answer any more."""
        self.question = None
