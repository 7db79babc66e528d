"""What the operator sets, as the engine's own records: limits of runs and sessions, the engine, the image's build.

The records are sections of the configuration as well: names without their unit, defaults, bounds and the sentence below
each key are written here and nowhere else, and docs/configuration.md is made of them. Where the values come from is the
gateway's business. `Timeouts` is set by nobody but tests. Frozen; no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

_SMALLEST_MESSAGE_BYTES = 16 << 20

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=30 * 86_400)]
Size = Annotated[int, Meta(ge=1, extra={"human": True})]
"""Bytes; "512M", "1.5 GiB" and plain numbers are understood, with K = 1024 as Docker has it."""
OutputSize = Annotated[int, Meta(ge=1, le=8 << 20, extra={"human": True})]
ArtifactSize = Annotated[int, Meta(ge=1, le=64 << 20, extra={"human": True})]
RequestSize = Annotated[int, Meta(ge=1, le=32 << 20, extra={"human": True})]
"""What passes between gateway and supervisor as one message, and is held in memory at both ends."""

# Times, memory and disk carry no unit as keys of the configuration; other sizes keep theirs (`output_bytes`).
_KEYS = {f"{name}_s": name for name in ("timeout", "max_timeout", "idle_timeout", "max_lifetime")}
_KEYS |= {f"{name}_bytes": name for name in ("memory", "disk")}


class Section(Struct, frozen=True, forbid_unknown_fields=True, rename=_KEYS):
    """One section of the configuration."""


class Limits(Section, frozen=True):
    """What one run, and the container around it, may use. Sizes in bytes, times in seconds."""

    timeout_s: Seconds = 30.0
    """The time limit of a run whose request names none."""
    max_timeout_s: Seconds = 600.0
    """The longest time limit that a request may name."""
    memory_bytes: Size = 1 << 30
    """The memory of a container."""
    cpus: Annotated[float, Meta(gt=0, le=1024)] = 1.0
    """The processors of a container."""
    pids: Positive = 256
    """Processes and threads in a container."""
    disk_bytes: Size = 256 << 20
    """The writable disk of a container."""
    inodes: Positive = 16_384
    """Files and directories on that disk."""
    nofile: Positive = 1024
    """Open files of a process."""
    output_bytes: OutputSize = 1 << 20
    """The text that a run may print."""
    image_bytes: ArtifactSize = 10 << 20
    """One image of a run."""
    image_count: Count = 50
    """Images of a run."""
    image_pixels: Positive = 50_000_000
    """Pixels of one image."""
    file_bytes: ArtifactSize = 10 << 20
    """One file of a run."""
    file_count: Count = 50
    """Files of a run."""
    files_bytes: Size = 64 << 20
    """All images and files of a run together, figures included; what is the same counts once."""
    request_bytes: RequestSize = 10 << 20
    """The body of a request."""
    queue: Count = 64
    """Requests that wait for a sandbox; the next one gets 429."""

    @property
    def message_bytes(self) -> int:
        """How large a kernel's message may be: an image in base64, or all output with JSON's escapes (6 for 1) fits."""
        return max(_SMALLEST_MESSAGE_BYTES, self.image_bytes * 3 // 2, self.output_bytes * 8)


class EngineSettings(Section, frozen=True):
    """How containers run."""

    name: str = "auto"
    """`docker`, `process` (no isolation, loopback only), or `auto`: docker where it answers."""
    kernel_image: str = ""
    """The kernel image; empty: the one that `build` describes, built when it is missing."""
    network: str = "none"
    """`none`, or a Docker network that sandboxes may use."""
    runtime: str = ""
    """The container runtime, e.g. `runsc` for gVisor; empty: the engine's own."""
    zygote: str = "auto"
    """`auto`: one [zygote](security.md#the-zygote) forks kernels where it can; `off`: sandboxes fork their own."""
    sandbox_log: bool = False
    """Whether `docker logs` shows what a sandbox's supervisor logs; see [debugging](debugging.md)."""


class BuildSettings(Section, frozen=True):
    """How the kernel image is made. Its defaults are the packages that a data analyst expects."""

    base: str = "python:3.13-slim"
    """Any glibc image with Python 3.11 or newer; `debian` makes one from the Debian mirror."""
    dependencies: tuple[str, ...] = (
        "numpy",
        "pandas",
        "matplotlib",
        "scipy",
        "pillow",
        "seaborn",
        "sympy",
        "scikit-learn",
        "statsmodels",
        "networkx",
        "openpyxl",
        "xlsxwriter",
        "xlrd",
        "pyarrow",
        "requests",
        "beautifulsoup4",
        "lxml",
        "tabulate",
        "python-dateutil",
        "pyyaml",
        "tqdm",
        "jinja2",
        "html5lib",
        "markdown",
        "python-docx",
        "python-pptx",
        "reportlab",
        "fpdf2",
        "pypdf",
        "pdfplumber",
        "opencv-python-headless",
        "imageio",
        "qrcode",
        "plotly",
        "nbformat",
        "ipywidgets",
        "rich",
        "pytz",
        "deno",
    )
    """Packages in the image, as pip requirements."""
    preload: tuple[str, ...] = ("numpy", "pandas", "matplotlib.pyplot")
    """Modules that are imported once, by the zygote or in each container, before kernels are forked."""
    constraints: str = ""
    """A file of versions for pip; `none`: the newest ones; empty: the versions of this release."""
    proxy: str = ""
    """The HTTP proxy of the build."""
    ca_bundle: str = ""
    """Certificates that pip, and pip alone, trusts during the build."""
    network: str = "host"
    """The Docker network of the build."""


class PoolSettings(Section, frozen=True):
    """How many sandboxes there are. Each serves one stateless run or one session."""

    size: Count = 2
    """Kernels that are kept warm."""
    max: Positive = 24
    """Containers at once, those at work and those of sessions included."""


class SessionLimits(Section, frozen=True):
    """How long sessions are kept unless a client asks for less, and how many a tenant may have. In seconds.

    A client may ask for up to `max_lifetime_s`, of either time.
    """

    idle_timeout_s: Seconds = 1800.0
    """A session that is not used for this long ends."""
    max_lifetime_s: Seconds = 86_400.0
    """A session ends at this age."""
    max_per_tenant: Positive = 16
    """Sessions that a tenant may have at once."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the engine waits, and pauses between attempts. In seconds."""

    # Kernels
    refill_pause_s: float = 0.25  # the pool is refilled this long after a claim; a fifth of it when no kernel is warm
    claim_timeout_s: float = 30.0  # a run waits this long for a kernel from the pool
    ready_timeout_s: float = 60.0  # a kernel that was launched, or has died, must answer within this time
    restart_timeout_s: float = 30.0  # a kernel that somebody restarts must answer again within this time
    hello_timeout_s: float = 10.0  # a connection to a kernel's socket must say hello within this time
    reconnect_timeout_s: float = 10.0  # a supervisor whose connection broke may dial again for this long
    file_answer_timeout_s: float = 30.0  # a supervisor must answer a question about files within this time
    fate_timeout_s: float = 2.0  # the engine is asked for this long how a sandbox ended
    fate_poll_s: float = 0.05  # the pause between two of these questions
    unlinked_poll_s: float = 0.5  # the engine is asked this often whether a sandbox whose supervisor is away has ended
    engine_check_pause_s: float = 10.0  # the engine is asked this often whether it answers, where none are kept warm
    first_backoff_s: float = 0.5  # the pause after the first failed launch; each further one doubles it
    longest_backoff_s: float = 30.0  # the longest pause between failing launches

    # Runs
    interrupt_grace_s: float = 2.0  # code may take this long to heed an interrupt before its kernel is killed
    kill_grace_s: float = 5.0  # a supervisor may take this long after that to report the end; then its container goes
    files_timeout_s: float = 5.0  # the files of a run must arrive within this time, plus
    files_s_per_mib: float = 0.25  # this for each MiB of `limits.files_bytes`; those that are left then are skipped
    link_timeout_s: float = 60.0  # a run that was sent waits this long for a supervisor that is away
    resumed_min_s: float = 5.0  # a run that was taken over has at least this long left, even past its time limit
    variables_timeout_s: float = 60.0  # a kernel must have set a new session's variables within this time
    attempt_pause_s: float = 0.5  # the pause before a run asks for a kernel again
    commit_timeout_s: float = 30.0  # a caller waits this long for the end of its run to be committed
    elsewhere_poll_s: float = 0.5  # the store is asked this often about a run that lives at another gateway
    removal_delay_s: float = 0.01  # a used kernel is removed this long after its answer, so that the answer goes first

    # The store
    batch_pause_s: float = 0.25  # output gathers this long before it is written, unless somebody follows the run
    first_write_retry_s: float = 0.1  # the pause after the first write that failed; each further one doubles it
    longest_write_retry_s: float = 2.0  # the longest pause between such writes
    withdrawal_retry_s: float = 0.5  # the pause between attempts to remove the record of a run that was refused
    withdrawal_pause_s: float = 10.0  # the second removal of such a run comes this long after the first
    last_withdrawals_s: float = 2.0  # a gateway that stops takes at most this long over these removals
    store_check_pause_s: float = 2.0  # the store is asked this often whether it answers

    # Sessions
    queued_patience_s: float = 120.0  # a queued run of a session goes on asking for a kernel for this long
    restarting_timeout_s: float = 10.0  # a Jupyter client waits this long for a kernel at work to become ready
    renewal_pause_s: float = 30.0  # the use of a session by Jupyter clients is recorded this often
    cull_pause_s: float = 1.0  # sessions whose time has run out are looked for this often
    end_timeout_s: float = 15.0  # whoever deletes a session waits at most this long for its last run to end
    stop_grace_s: float = 5.0  # admissions may take this long to end when the gateway stops, and again to be undone
