"""What the zygote does when it is up: it makes later kernels cheaper, and has time for requests in between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_image import completion, huge_pages, kernel_program, zygote
from kernel_image.protocol import ZygoteSettings


def test_it_serves_at_once_and_between_the_steps(monkeypatch: pytest.MonkeyPatch, short_dir: Path) -> None:
    steps: list[object] = []

    def warm_up() -> Iterator[None]:
        for number in range(2):
            steps.append(f"completion {number}")
            yield

    def serve(_: zygote.Zygote, duration_s: float) -> None:
        assert (short_dir / "s").is_socket()
        steps.append(duration_s)

    monkeypatch.setattr(kernel_program, "import_all", lambda _: steps.append("imports"))
    monkeypatch.setattr(completion, "warm_up", warm_up)
    monkeypatch.setattr(huge_pages, "collapse", lambda: steps.append("pages"))
    monkeypatch.setattr(zygote.gc, "collect", lambda: None)
    monkeypatch.setattr(zygote.gc, "freeze", lambda: steps.append("freeze"))
    monkeypatch.setattr(zygote.Zygote, "_serve_for", serve)
    settings = ZygoteSettings(str(short_dir / "s"), os.getuid(), "/c", "/w", "/i", "/h", orphan_timeout_s=0.01)
    served = zygote.Zygote(settings)
    served.run()
    served._socket.close()
    assert steps == [
        *("imports", zygote._FIRST_PAUSE_S, "pages", zygote._PAUSE_S),
        *("completion 0", zygote._PAUSE_S, "completion 1", zygote._PAUSE_S),
        *(zygote._PAUSE_S, "freeze", "pages"),
    ]
