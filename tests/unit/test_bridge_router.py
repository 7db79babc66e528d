"""Between local clients and a kernel, without sockets and without a kernel."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.local_jupyter import router as router_module
from gateway.local_jupyter.router import MessageRouter
from kernel_image.protocol import encode_message


class Sockets:
    def __init__(self, _: object, handle: Any) -> None:
        self.handle = handle
        self.published: list[list[Any]] = []
        self.replies: list[list[bytes]] = []

    def reply(self, _: str, __: object, parts: list[bytes]) -> None:
        self.replies.append(parts)

    def publish(self, _: str, parts: list[Any]) -> None:
        self.published.append(parts)

    def make(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any]) -> list[Any]:
        return [msg_type, content, parent]


def header(msg_id: str, msg_type: str) -> dict[str, str]:
    return {"msg_id": msg_id, "msg_type": msg_type, "session": "s", "username": "", "date": "", "version": "5.3"}


def encoded(*parts: Any) -> list[bytes]:
    return [part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts]


@pytest.mark.parametrize("reply_is_first", [False, True])
def test_a_message_that_is_kept_from_clients_is_told_although_the_reply_was_first(
    monkeypatch: pytest.MonkeyPatch, *, reply_is_first: bool
) -> None:
    monkeypatch.setattr(router_module, "ClientSockets", Sockets)
    kernel = SimpleNamespace(kernel_id="k", execute_frame=lambda *_: None)
    router = MessageRouter(cast("Any", None), cast("Any", kernel), lambda _: None, 1 << 20)
    sockets = cast("Any", router.sockets)
    cell = header("cell", "execute_request")
    sockets.handle("shell", [b"client"], encoded(cell, {}, {}, {"code": "1"}))
    frames = [
        encode_message("iopub", encoded(header("shown", "display_data"), cell, {}, b"[]")),
        encode_message("shell", encoded(header("reply", "execute_reply"), cell, {}, {"status": "ok"})),
    ]
    for frame in reversed(frames) if reply_is_first else frames:
        router.on_frame(memoryview(frame))
    assert len(sockets.replies) == 1
    ((msg_type, content, parent),) = sockets.published
    assert (msg_type, parent["msg_id"]) == ("stream", "cell")
    assert "no message of Jupyter's" in content["text"]
