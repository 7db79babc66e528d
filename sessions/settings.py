"""What the operator sets, as the engine's own records: limits of runs and sessions, the engine, the image's build.

Where the values come from is the gateway's business. `Timeouts` is set by nobody but tests. Plain frozen dataclasses;
no I/O.
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
    """How containers run. `network` is a Docker network name or `none`; `runtime` is e.g. `runc` or `runsc`.

    `sandbox_log`: Docker keeps the end of what a supervisor logs, for `docker logs`.
    """

    name: str = "auto"
    kernel_image: str = ""
    network: str = "none"
    runtime: str = ""
    sandbox_log: bool = False


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


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the engine waits, and pauses between attempts. In seconds."""

    # Kernels
    claim_timeout_s: float = 30.0
    """A run waits this long for a kernel from the pool."""
    ready_timeout_s: float = 60.0
    """A kernel that was launched or restarted must answer within this time."""
    hello_timeout_s: float = 10.0
    """A connection to a kernel's socket must say hello within this time."""
    reconnect_timeout_s: float = 10.0
    """A supervisor whose connection broke may dial again for this long."""
    file_answer_timeout_s: float = 30.0
    """A supervisor must answer a question about files within this time."""
    fate_timeout_s: float = 2.0
    """The engine is asked for this long how a sandbox ended."""
    fate_poll_s: float = 0.05
    """The pause between two of these questions."""
    unlinked_poll_s: float = 0.5
    """The engine is asked this often whether a sandbox whose supervisor is away has ended."""
    engine_check_pause_s: float = 10.0
    """The engine is asked this often whether it answers, where no kernels are kept warm."""
    first_backoff_s: float = 0.5
    """The pause after the first failed launch; each further one doubles it."""
    longest_backoff_s: float = 30.0
    """The longest pause between failing launches."""

    # Runs
    interrupt_grace_s: float = 2.0
    """Code may take this long to heed an interrupt before its kernel is killed."""
    kill_grace_s: float = 5.0
    """A supervisor may take this long after that grace to report the end, before its container is removed."""
    files_timeout_s: float = 120.0
    """The files of a run whose code has ended must arrive within this time."""
    link_timeout_s: float = 60.0
    """A run that was sent waits this long for a supervisor that is away."""
    resumed_min_s: float = 5.0
    """A run taken over from an earlier gateway may go on at least this long, even past its time limit."""
    variables_timeout_s: float = 60.0
    """A kernel must have set a new session's variables within this time."""
    attempt_pause_s: float = 0.5
    """The pause before a run asks for a kernel again."""
    commit_timeout_s: float = 30.0
    """A caller waits this long for the end of its run to be committed."""
    elsewhere_poll_s: float = 0.5
    """The store is asked this often about a run that lives at another gateway."""
    removal_delay_s: float = 0.01
    """A used kernel is removed this long after its answer, so that the answer goes first."""

    # The store
    batch_pause_s: float = 0.25
    """Output gathers this long before it is written, unless somebody follows the run."""
    first_write_retry_s: float = 0.1
    """The pause after the first write that the store did not take; each further one doubles it."""
    longest_write_retry_s: float = 2.0
    """The longest pause between such writes."""
    withdrawal_retry_s: float = 0.5
    """The pause between attempts to remove a run that was refused from the record."""
    withdrawal_pause_s: float = 10.0
    """The second removal of such a run comes this long after the first."""
    last_withdrawals_s: float = 2.0
    """A gateway that stops takes at most this long over these removals."""
    store_check_pause_s: float = 2.0
    """The store is asked this often whether it answers."""

    # Sessions
    queued_patience_s: float = 120.0
    """A queued run of a session goes on asking this long for a kernel when none can be had."""
    restarting_timeout_s: float = 10.0
    """A Jupyter client waits this long for a kernel at work that is starting, before it asks for another."""
    renewal_pause_s: float = 30.0
    """The use of a session by Jupyter clients is recorded this often."""
    cull_pause_s: float = 1.0
    """Sessions whose time has run out are looked for this often."""
    end_timeout_s: float = 15.0
    """Whoever deletes a session waits at most this long for its last run to end."""
    stop_grace_s: float = 5.0
    """What is being admitted when the gateway stops may take this long to end, and as long again to be undone."""
