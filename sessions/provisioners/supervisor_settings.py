"""What every engine tells a supervisor: the launch's limits and where things are, in the supervisor's own record."""

from __future__ import annotations

import math

from kernel_image.protocol import SupervisorSettings
from sessions.ports import LaunchSpec

_MESSAGES_IN_SPOOL = 2
_MESSAGES_PER_RUN = 4

USER_NAME = "sandbox"
"""USER and LOGNAME of kernels: their user id has no name of its own."""


def supervisor_settings(
    spec: LaunchSpec, *, gateway: str, work_dir: str, ipc_dir: str, home_dir: str
) -> SupervisorSettings:
    """The settings for one launch. `gateway` and the directories are as the supervisor itself sees them."""
    return SupervisorSettings(
        kernel_id=spec.kernel_id,
        credential=spec.credential,
        gateway=gateway,
        work_dir=work_dir,
        ipc_dir=ipc_dir,
        home_dir=home_dir,
        kernel_name=spec.kernel_name,
        preload=spec.preload,
        orphan_timeout_s=spec.orphan_timeout_s,
        # More linear algebra threads than the CPU limit allows would only wait for one another.
        threads=math.ceil(spec.limits.cpus),
        max_message_bytes=spec.limits.message_bytes,
        # While no gateway is there, what a kernel says is kept in the container's own memory.
        spool_bytes=spec.limits.message_bytes * _MESSAGES_IN_SPOOL,
        # A run shows a few images of the largest size, or many of a usual one; what it saves as files is not in this.
        relay_bytes=spec.limits.message_bytes * _MESSAGES_PER_RUN,
        image_bytes=spec.limits.image_bytes,
        image_count=spec.limits.image_count,
        file_bytes=spec.limits.file_bytes,
        file_count=spec.limits.file_count,
        files_bytes=spec.limits.files_bytes,
    )
