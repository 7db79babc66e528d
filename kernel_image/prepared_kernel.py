"""A kernel of another language in which set-up code has run: its pipes, and the functions that the code has left there.

They set the environment of one run and put it back, and they say of a run that has failed what the kernel does not. The
answers are for nobody else: a reply that says how code has failed is held until it has been explained.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kernel_image.kernel_messages import JSON_ERRORS
from kernel_image.kernel_pipes import KernelPipes, Publish

_REMEMBERED = 256


class PreparedKernel:
    """One kernel process.

    Its state: the code of the requests that are not answered, the questions of our own, the replies that are held by
    the question about them, what the last explanation was, and whether the code was interrupted.
    """

    def __init__(self, functions: str, execute: Callable[[str], str], publish: Publish, max_message_bytes: int) -> None:
        """`functions` is an expression of the language; `execute` runs code silently, and returns the msg_id.

        `publish` gets what comes through the pipes.
        """
        self._functions = functions
        self._execute = execute
        self._publish = publish
        self.pipes = KernelPipes(self._on_piped, max_message_bytes)
        self._code: dict[str, str] = {}
        self._failed: OrderedDict[str, None] = OrderedDict()
        self._own: OrderedDict[str, None] = OrderedDict()
        self._held: dict[str, list[bytes]] = {}
        self._error: dict[str, Any] | None = None
        self._is_interrupted = False

    @contextmanager
    def around(self, channel: str, parts: list[bytes]) -> Iterator[None]:
        """While a request is sent: what comes before it, and after it."""
        env: Any = None
        if channel == "shell":
            try:
                header, content = json.loads(parts[0]), json.loads(parts[3])
                if header["msg_type"] == "execute_request":
                    self._code[header["msg_id"]] = content["code"]
                    env = json.loads(parts[2]).get("cellblock", {}).get("env")
            except JSON_ERRORS:
                pass
        if env:
            self._call("setEnvironment", env)
        yield
        if env:
            self._call("putEnvironmentBack")

    def note_interrupt(self) -> None:
        """The code at work is interrupted, if there is any."""
        self._is_interrupted = bool(self._code)

    def _on_piped(self, msg_type: str, content: dict[str, Any], metadata: dict[str, Any]) -> None:
        if msg_type == "error":  # which an explanation is
            self._error = content
        self._publish(msg_type, content, metadata)

    def received(self, channel: str, parts: list[bytes]) -> list[list[bytes]]:
        """What of the kernel's messages is to be passed on now that this one has come on a channel."""
        self.pipes.read_written()  # it was written before
        try:
            msg_type, parent = json.loads(parts[0])["msg_type"], json.loads(parts[1]).get("msg_id")
        except JSON_ERRORS:
            return [parts]
        if parent in self._own:
            held = self._held.pop(parent, None) if (channel, msg_type) == ("shell", "execute_reply") else None
            return [self._explained(held)] if held is not None else []
        if (channel, msg_type) == ("iopub", "error") and (parent in self._code or parent in self._failed):
            return []  # the explanation stands for it
        if (channel, msg_type) == ("shell", "execute_reply") and parent in self._code:
            return self._replied(parent, parts)
        return [parts]

    def _replied(self, msg_id: str, parts: list[bytes]) -> list[list[bytes]]:
        code, is_interrupted = self._code.pop(msg_id), self._is_interrupted
        self._is_interrupted = False
        try:
            reply = json.loads(parts[3])
            if reply["status"] != "error":
                return [parts]
        except JSON_ERRORS:
            return [parts]
        _remember(self._failed, msg_id)
        self._error = None
        self._held[self._call("explain", {"code": code, "reply": reply, "interrupted": is_interrupted})] = parts
        return []

    def _explained(self, parts: list[bytes]) -> list[bytes]:
        if self._error is None:
            return parts
        content = {**json.loads(parts[3]), **self._error}
        return [*parts[:3], json.dumps(content).encode()]

    def _call(self, function: str, argument: dict[str, Any] | None = None) -> str:
        # JSON in a string literal, which is the same in most languages.
        literal = "" if argument is None else json.dumps(json.dumps(argument))
        msg_id = self._execute(f"{self._functions}.{function}({literal})")
        _remember(self._own, msg_id)
        return msg_id


def _remember(ids: OrderedDict[str, None], msg_id: str) -> None:
    ids[msg_id] = None
    while len(ids) > _REMEMBERED:
        ids.popitem(last=False)
