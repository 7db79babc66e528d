"""In which order a process becomes a kernel: nothing of the user's runs before the supervisor has looked at it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from kernel_image import entering, hardening, kernel_program, zygote
from kernel_image.protocol import ZygoteSettings


class Exited(BaseException):
    """In place of the process's end."""


def test_the_users_packages_wait_for_the_supervisors_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps: list[str] = []

    def step(name: str) -> Any:
        return lambda *_, **__: steps.append(name)

    def leave(status: int) -> None:
        steps.append(f"exit {status}")
        raise Exited

    def adopted() -> int:
        steps.append("adopted")
        return 1

    monkeypatch.setattr(os, "getppid", adopted)
    monkeypatch.setattr(os, "_exit", leave)
    for owner, name in (
        (os, "setsid"),
        (os, "umask"),
        (entering, "become_one_of"),
        (hardening, "allow_tracing"),
        (hardening, "die_with_parent"),
        (zygote, "_wait_for"),
        (hardening, "offer_to_oom_killer"),
        (kernel_program, "settle"),
        (kernel_program, "run_kernel"),
    ):
        monkeypatch.setattr(owner, name, step(name))
    settings = ZygoteSettings("s", 0, "/c", "/w", str(tmp_path), "/h")
    reader, writer = os.pipe()
    with pytest.raises(Exited):
        zygote._become_kernel(cast("Any", None), settings, writer)
    assert json.loads(os.read(reader, 100)) == {"pid": os.getpid()}
    os.close(reader)
    assert steps[steps.index("become_one_of") :] == [
        "become_one_of",
        "adopted",
        "allow_tracing",
        "die_with_parent",
        "_wait_for",
        "settle",
        "run_kernel",
        "exit 0",
    ]
