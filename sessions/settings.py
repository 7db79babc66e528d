"""What the operator sets, as the engine's own records: limits of runs and sessions, the engine, the image's build.

Where the values come from is the gateway's business. Plain frozen dataclasses; no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

_SMALLEST_MESSAGE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run, and the container around it, may use. Sizes in bytes, times in seconds."""

    timeout_s: float = 30.0
    max_timeout_s: float = 600.0
    memory_bytes: int = 1 << 30
    cpus: float = 1.0
    pids: int = 256
    disk_bytes: int = 256 << 20
    inodes: int = 16_384
    nofile: int = 1024
    output_bytes: int = 1 << 20
    image_bytes: int = 10 << 20
    image_count: int = 50
    image_pixels: int = 50_000_000
    file_bytes: int = 10 << 20
    file_count: int = 50
    request_bytes: int = 10 << 20
    queue: int = 64

    @property
    def message_bytes(self) -> int:
        """How large a kernel's message may be: an image in base64, or all output with JSON's escapes (6 for 1) fits."""
        return max(_SMALLEST_MESSAGE_BYTES, self.image_bytes * 3 // 2, self.output_bytes * 8)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How containers run. `network` is a Docker network name or `none`; `runtime` is e.g. `runc` or `runsc`."""

    name: str = "auto"
    kernel_image: str = ""
    network: str = "none"
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How the kernel image is made. `base` is an image name or `debian`; empty strings mean "find out".

    `constraints` is a file of versions for pip, `none` for the newest ones, or empty for the versions of this release.
    """

    base: str = "python:3.13-slim"
    dependencies: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    constraints: str = ""
    proxy: str = ""
    ca_bundle: str = ""
    network: str = "host"


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How long sessions are kept unless a client asks for less, and how many a tenant may have.

    A client may ask for up to `max_lifetime_s`, of either time.
    """

    idle_timeout_s: float = 1800.0
    max_lifetime_s: float = 86_400.0
    max_per_tenant: int = 16
