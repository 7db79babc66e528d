"""The database's shape: runs, events, artifacts, sessions and tokens. How it came about is in `migrations`.

Only the current shape, for queries; no queries and no connection.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    Uuid,
    text,
)

from gateway.store.column_types import LosslessJSON, LosslessText

metadata = MetaData()

_UUID = Uuid(as_uuid=False)
_TIME = DateTime(timezone=True)

# One row says all that `GET /runs/{id}` answers. `finished_at` is null exactly while the run lives. With retention, the
# content goes (`code` to `answer` become null) and `expired_at` is set: the row is then a tombstone, by which "that has
# been removed" is told apart from "there never was such a run"; it keeps who ran when, and what it cost.
# `jupyter` is how a Jupyter client asked for it, null for all others (header, metadata, content but for
# the code, client). `inputs` (files as pairs of path and size, fetch, env) and `input_data`, the content of those files
# one after the other, are null where the run was given none of it, and once it has ended. `traceparent` is its
# client's, of W3C Trace Context; it goes with the content.
# `answer` is the rest of the final answer: error, exception, results, images and files (artifacts, by the names under
# which the answer has them), execution_count, truncated, session_created, session_lost. `taken_seq` and `progress`
# (file_seq, state) say how far the events of a living run go; they change often, so no index may be on them. `epoch`
# counts how often a store has taken the living run over: what one writes that holds an older epoch does not count.
runs = Table(
    "runs",
    metadata,
    Column("run_id", _UUID, primary_key=True),
    Column("number", BigInteger, Identity(always=True), nullable=False),
    Column("tenant", LosslessText, nullable=False),
    Column("gateway_id", LosslessText, nullable=False),
    Column("kernel_id", _UUID),
    Column("session_id", LosslessText),
    Column("language", LosslessText, nullable=False),
    Column("timeout_s", Double, nullable=False),
    Column("allow_stdin", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", _TIME, nullable=False),
    Column("started_at", _TIME),
    Column("finished_at", _TIME),
    Column("expired_at", _TIME),
    Column("status", Text, nullable=False),
    Column("idempotency_key", LosslessText),
    Column("request_sha256", LargeBinary),
    Column("code", LosslessText),
    Column("variables", LosslessJSON),
    Column("jupyter", LosslessJSON),
    Column("inputs", LosslessJSON),
    Column("input_data", LargeBinary),
    Column("traceparent", Text),
    Column("output", LosslessText),
    Column("stderr", LosslessText),
    Column("answer", LosslessJSON),
    Column("wall_ms", Double),
    Column("cpu_ms", Double),
    Column("memory_peak_bytes", BigInteger),
    Column("taken_seq", BigInteger),
    Column("progress", LosslessJSON),
    Column("epoch", Integer, nullable=False, server_default=text("0")),
    Index("runs_of_tenant", "tenant", "number", postgresql_where=text("expired_at IS NULL")),
    Index(
        "runs_of_session",
        "tenant",
        "session_id",
        "number",
        postgresql_where=text("session_id IS NOT NULL AND expired_at IS NULL"),
    ),
    Index(
        "runs_idempotency_key",
        "tenant",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    Index("runs_unfinished", "gateway_id", postgresql_where=text("finished_at IS NULL")),
    Index("runs_to_expire", "created_at", postgresql_where=text("expired_at IS NULL")),
    Index("runs_tombstones", "expired_at", postgresql_where=text("expired_at IS NOT NULL")),
)

events = Table(
    "events",
    metadata,
    Column("run_id", _UUID, ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("type", Text, nullable=False),
    Column("fields", LosslessJSON, nullable=False),
)

# `data` is stored EXTERNAL (out of line, not compressed): pictures are compressed already. It is empty where another
# row of the run has the same content, which `sha256` finds.
artifacts = Table(
    "artifacts",
    metadata,
    Column("artifact_id", _UUID, primary_key=True),
    Column("run_id", _UUID, ForeignKey("runs.run_id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("name", LosslessText, nullable=False),
    Column("content_type", LosslessText, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", LargeBinary, nullable=False),
    Column("created_at", _TIME, nullable=False, server_default=text("now()")),
    Column("data", LargeBinary, nullable=False),
    Index("artifacts_of_run", "run_id"),
)

# A session is a tenant's name for a kernel. The row outlives the gateway process, so that a restarted one can find the
# kernel again. `expires_at` follows from the other columns: least(created_at + max_lifetime_s, last_used_at +
# idle_timeout_s). `version` counts what has changed of `kernel_id`, `generation` and `news`. `runs` and what follows it
# sum up the session's ended runs. `jupyter` is what Jupyter's REST API calls sessions of this kernel (id, path, name,
# type, moves): one, or a list of several; `jupyter_version` counts its changes.
sessions = Table(
    "sessions",
    metadata,
    Column("tenant", LosslessText, primary_key=True),
    Column("session_id", LosslessText, primary_key=True),
    Column("gateway_id", LosslessText, nullable=False),
    Column("kernel_id", _UUID),
    Column("generation", Integer, nullable=False, server_default=text("0")),
    Column("news", Text, nullable=False, server_default=text("'none'")),
    Column("version", BigInteger, nullable=False, server_default=text("0")),
    Column("language", LosslessText, nullable=False),
    Column("idle_timeout_s", Double, nullable=False),
    Column("max_lifetime_s", Double, nullable=False),
    Column("created_at", _TIME, nullable=False),
    Column("last_used_at", _TIME, nullable=False),
    Column("expires_at", _TIME, nullable=False),
    Column("runs", Integer, nullable=False, server_default=text("0")),
    Column("wall_ms", Double, nullable=False, server_default=text("0")),
    Column("cpu_ms", Double, nullable=False, server_default=text("0")),
    Column("memory_peak_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("jupyter", LosslessJSON),
    Column("jupyter_version", BigInteger, nullable=False, server_default=text("0")),
    Index("sessions_of_gateway", "gateway_id"),
)

# Tokens that are made and revoked while gateways run: tokens.py.
tokens = Table(
    "tokens",
    metadata,
    Column("token_sha256", LargeBinary, primary_key=True),
    Column("tenant", LosslessText, nullable=False),
    Column("name", LosslessText, nullable=False),
    Column("created_at", _TIME, nullable=False),
    Column("revoked_at", _TIME),
    Index("tokens_of_tenant", "tenant"),
)
