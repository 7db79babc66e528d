"""The wire between supervisor and gateway: frame layout, control messages, start-up settings.

Both ends import it, so it needs the standard library alone. It opens no connection and keeps no state. Its records are
named tuples, like all others that PID 1 of a container imports: defining a dataclass takes up to a millisecond.
docs/protocol.md has the whole conversation.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

SUBPROTOCOL = "v1.kernel.websocket.jupyter.org"
"""Jupyter's own WebSocket framing: https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html"""

PROTOCOL_VERSION = 2

SOCKET_NAME = "s"
"""File name of the gateway's listening socket in the mounted directory; short, since socket paths are."""

UNIX_PATH_MAX_BYTES = 107
"""sizeof(sockaddr_un.sun_path) less its NUL, on Linux."""

SETTINGS_VARIABLE = "CELLBLOCK_SUPERVISOR"
"""Environment variable with the supervisor's settings as JSON, credential included; scrubbed as it is read."""

ARTIFACT_CHANNEL = "artifact"
"""Our own channel name: frames that carry a piece of a file that a run has made, in Jupyter's framing."""

FILE_CHANNEL = "file"
"""Likewise, for files that a client reads or writes; from the supervisor such a frame has the number 0."""

MESSAGE_CHANNELS = ("shell", "control", "stdin", "iopub")

CLIENT_ID = "cellblock_client_id"
"""A field in the header of a request to a kernel: the msg_id that a Jupyter client gave it, beside the gateway's own.

The kernel sees the client's in place of the gateway's. A supervisor that does not know the field passes it on.
"""

QUESTION_ID = "cellblock_question_id"
"""A field in the header of an input_reply: the msg_id of the input_request that it answers, and no other."""

MAX_PATH_CHARACTERS = 1024
"""How long an artifact's path may be."""

MAX_PARTS = 62
"""Header, parent_header, metadata, content and at most 58 buffers; the other end refuses a frame with more."""

_U64 = struct.Struct("<Q")
_U64_BYTES = 8
_MIN_OFFSETS = 6
_MAX_OFFSETS = MAX_PARTS + 2
_MAX_CHANNEL_BYTES = 16


MISSING = "missing"
"""Why a file was skipped that a run was to bring back: there is no regular file of that name."""


class FrameError(ValueError):
    """A frame does not have the layout that the protocol gives it."""


class SupervisorSettings(NamedTuple):
    """The settings of a supervisor, which it reads at its start. Sizes in bytes, times in seconds.

    `gateway` is `unix:<path>`. `threads` is what linear algebra libraries may use.
    `max_message_bytes` bounds one Jupyter message, `spool_bytes` what is kept for a gateway that is away, `relay_bytes`
    the messages of one run that are passed on at all. The gateway derives them from its limits on output and images.
    """

    kernel_id: str
    credential: str
    gateway: str
    work_dir: str
    ipc_dir: str
    home_dir: str
    kernel_name: str = "python3"
    preload: tuple[str, ...] = ()
    threads: int = 1
    orphan_timeout_s: float = 300.0
    spool_bytes: int = 32 << 20
    max_message_bytes: int = 16 << 20
    relay_bytes: int = 64 << 20
    image_bytes: int = 10 << 20
    image_count: int = 50
    file_bytes: int = 10 << 20
    file_count: int = 50
    files_bytes: int = 64 << 20
    scan_entries: int = 20_000
    zygote: bool = False
    """Whether the gateway can fork kernels into this sandbox from outside."""
    log: bool = True
    """Whether anybody reads what the supervisor logs."""

    def to_json(self) -> str:
        """The value of `SETTINGS_VARIABLE`."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> SupervisorSettings:
        """The inverse of `to_json`. Raises ValueError or TypeError when `text` is not that."""
        fields = json.loads(text)
        fields["preload"] = tuple(fields.get("preload", ()))
        return cls(**fields)


class ZygoteSettings(NamedTuple):
    """The settings of a zygote, which it reads at its start. Paths are as the zygote sees them; times in seconds.

    `uid` is who may ask, beside root. The directories and `threads` are those of the sandboxes it forks into.
    """

    socket: str
    uid: int
    cgroup_root: str
    work_dir: str
    ipc_dir: str
    home_dir: str
    preload: tuple[str, ...] = ()
    threads: int = 1
    orphan_timeout_s: float = 300.0

    def to_json(self) -> str:
        """The value of `SETTINGS_VARIABLE`."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> ZygoteSettings:
        """The inverse of `to_json`. Raises ValueError or TypeError when `text` is not that."""
        fields = json.loads(text)
        fields["preload"] = tuple(fields.get("preload", ()))
        return cls(**fields)


def encode_message(channel: str, parts: Sequence[bytes]) -> bytes:
    """Frame a Jupyter message: `parts` are header, parent_header, metadata, content and buffers, already serialized."""
    name = channel.encode()
    count = len(parts) + 2
    offset = _U64_BYTES * (1 + count)
    offsets = [offset]
    offset += len(name)
    for part in parts:
        offsets.append(offset)
        offset += len(part)
    offsets.append(offset)
    return b"".join([struct.pack(f"<{count + 1}Q", count, *offsets), name, *parts])


def decode_message(frame: bytes | memoryview) -> tuple[str, list[bytes]]:
    """Take a framed Jupyter message apart: channel, then at least header, parent_header, metadata and content.

    Raises FrameError for every frame that `encode_message` could not have made, before copying any of it.
    """
    view = memoryview(frame)
    if len(view) < _U64_BYTES:
        raise FrameError("frame is shorter than its own length field")
    (count,) = _U64.unpack_from(view)
    if not _MIN_OFFSETS <= count <= _MAX_OFFSETS or len(view) < _U64_BYTES * (1 + count):
        raise FrameError("frame has an impossible number of parts")
    offsets = struct.unpack_from(f"<{count}Q", view, _U64_BYTES)
    if offsets[0] != _U64_BYTES * (1 + count) or offsets[-1] != len(view) or any(a > b for a, b in pairwise(offsets)):
        raise FrameError("frame has offsets that are out of order")
    if offsets[1] - offsets[0] > _MAX_CHANNEL_BYTES:
        raise FrameError("frame has an overlong channel name")
    try:
        channel = bytes(view[offsets[0] : offsets[1]]).decode("ascii")
    except UnicodeDecodeError as error:
        raise FrameError("frame has a channel name that is not ASCII") from error
    return channel, [bytes(view[a:b]) for a, b in pairwise(offsets[1:])]


def channel_of(frame: bytes | memoryview) -> bytes:
    """The beginning of the channel's name in a framed Jupyter message. Raises FrameError."""
    try:
        start, end = struct.unpack_from("<2Q", frame, _U64_BYTES)
    except struct.error as error:
        raise FrameError("frame is shorter than its offsets") from error
    return bytes(frame[start : min(end, start + _MAX_CHANNEL_BYTES)])


def number_frame(seq: int, frame: bytes) -> bytes:
    """Put the u64 little-endian `seq` in front of a frame."""
    return _U64.pack(seq) + frame


def split_number(frame: bytes) -> tuple[int, memoryview]:
    """The inverse of `number_frame`. Raises FrameError."""
    if len(frame) < _U64_BYTES:
        raise FrameError("frame is shorter than its sequence number")
    return _U64.unpack_from(frame)[0], memoryview(frame)[_U64_BYTES:]


def encode_control(op: str, **fields: Any) -> str:
    """A control message, as one JSON text frame."""
    return json.dumps({"op": op, **fields})


# Control messages; docs/protocol.md says more of each. Those marked * are numbered: they carry `seq` and stay in the
# spool until acknowledged.
#
# supervisor -> gateway
HELLO = "hello"  # protocol, kernel_id, credential, boot_id, state, generation, oldest_seq, next_seq,
#                  outstanding [msg_id], finished [msg_id], forwarded: msg_id or null,
#                  question: msg_id or null, limits, failed_preloads {module: reason}
STATE = "state"  # * state: starting | idle | dead; generation, pid, failed_preloads
DONE = "done"  # * msg_id, usage {wall_ms, cpu_ms, memory_peak_bytes, oom_kills}, skipped [{path, bytes, why}]
USAGE = "usage"  # * msg_id, usage: the code has ended, and its files are about to come;
#                  msg_id null: what was used while no request ran
DIED = "died"  # * msg_id or null, never_run [msg_id], usage or null, skipped, exit_code, signal,
#                  cause, which is one of oom, exited, signal, interrupt_ignored, restart, start
REJECTED = "rejected"  # * msg_id: there was no kernel to take this request; it was not run and will not be
FAILED = "failed"  # * msg_id or null, why: a frame of the gateway's that cannot be handled, and was dropped
FORK_WANTED = "fork_wanted"  # * number: the gateway is to have a kernel forked into the sandbox, see outside_forks.py
FORK_REFUSED = "fork_refused"  # * why: the first kernel forked differs from the sandbox's own processes, and was killed
GAP = "gap"  # * msg_id or null, dropped_bytes, dropped_frames, what: output (of one request) | spool (an overflow)
# gateway -> supervisor
WELCOME = "welcome"  # acknowledged: the last seq of this boot that the gateway needs no more
REFUSED = "refused"  # reason; the connection is closed after it
ACK = "ack"  # seq
INTERRUPT = "interrupt"  # msg_id or null, grace_s: SIGINT now, kill and fork anew when it is still running then
RESTART = "restart"  # kill the kernel and fork anew
STOP_FILES = "stop_files"  # msg_id: skip the files that have not been sent, and tell the end
FORKED = "forked"  # number, and pid (as the sandbox counts) or why: the answer to fork_wanted; failed_preloads
SHUTDOWN = "shutdown"  # end the supervisor

# Files of the working directory. The gateway asks, with an `id` of its own choosing; answers carry the same `id` and
# are not numbered: with the connection they are gone, and so is every file that was open.
FILE_LIST = "file_list"  # id, after: the path after which to go on, "" at first
FILE_OPEN = "file_open"  # id, path: open for reading
FILE_READ = "file_read"  # id: answered by a binary frame, numbered 0, on FILE_CHANNEL {id, offset}; no bytes at the end
FILE_CREATE = "file_create"  # id, path, limit_bytes: begin to write; pieces follow on FILE_CHANNEL {id, offset}
FILE_COMMIT = "file_commit"  # id: put what has been written in its place
FILE_CLOSE = "file_close"  # id: close what is open, forget what is not committed; no answer
FILE_REMOVE = "file_remove"  # id, path
# and the answers
FILE_ENTRIES = "file_entries"  # id, entries [[path, bytes, mtime_ns]] in order, FILE_PAGE at most; more: true or false
FILE_OPENED = "file_opened"  # id, bytes, mtime_ns; of FILE_CREATE too
FILE_WRITTEN = "file_written"  # id, offset: how many bytes are there now
FILE_COMMITTED = "file_committed"  # id, bytes, mtime_ns, created: whether there was none of that name
FILE_REMOVED = "file_removed"  # id
# why: not_found, not_a_file, link, denied, invalid, too_large, no_space, too_many, changed, io
FILE_FAILED = "file_failed"  # id, why

FILE_PAGE = 1000
FILE_PIECE_BYTES = 256 << 10
