"""What a supervisor is told follows from the limits, so that raising one of them is enough."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from kernel_image.protocol import SupervisorSettings
from sessions.model import GatewayId, KernelId
from sessions.ports import LaunchSpec
from sessions.provisioners.supervisor_settings import supervisor_settings
from sessions.settings import Limits

LARGEST = Limits(output_bytes=8 << 20, image_bytes=64 << 20)


def settings(limits: Limits) -> SupervisorSettings:
    spec = LaunchSpec(KernelId("k"), GatewayId("g"), "secret", Path("/s"), limits)
    return supervisor_settings(spec, gateway="unix:/s/s", work_dir="/w", ipc_dir="/i", home_dir="/h")


@pytest.mark.parametrize("limits", [Limits(), LARGEST, Limits(image_bytes=1, output_bytes=1)])
def test_an_image_and_all_output_fit_into_one_message(limits: Limits) -> None:
    told = settings(limits)
    assert told.max_message_bytes > len(base64.encodebytes(bytes(limits.image_bytes)))
    assert told.max_message_bytes > len(json.dumps("\0" * limits.output_bytes))
    assert told.max_message_bytes < told.spool_bytes < told.relay_bytes


@pytest.mark.parametrize(("cpus", "threads"), [(0.1, 1), (1.0, 1), (1.2, 2), (2.5, 3), (4.0, 4)])
def test_threads_are_the_processors_rounded_up(cpus: float, threads: int) -> None:
    assert settings(Limits(cpus=cpus)).threads == threads


def test_the_defaults_at_both_ends_agree() -> None:
    told = settings(Limits())
    plain = SupervisorSettings("k", "secret", "unix:/s/s", "/w", "/i", "/h")
    for name in ("max_message_bytes", "spool_bytes", "relay_bytes", "image_bytes", "file_bytes"):
        assert getattr(told, name) == getattr(plain, name)
