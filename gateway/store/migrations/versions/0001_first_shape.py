"""Runs, events, artifacts, sessions and tokens."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = (
    """
    CREATE TABLE runs (
        run_id uuid PRIMARY KEY,
        tenant text NOT NULL,
        gateway_id text NOT NULL,
        kernel_id uuid,
        session_id text,
        language text NOT NULL,
        timeout_s double precision NOT NULL,
        created_at timestamptz NOT NULL,
        finished_at timestamptz,
        expired_at timestamptz,
        status text NOT NULL,
        idempotency_key text,
        request_sha256 bytea,
        code text,
        variables json,
        output text,
        stderr text,
        answer json,
        wall_ms double precision,
        cpu_ms double precision,
        memory_peak_bytes bigint
    )
    """,
    "CREATE INDEX runs_of_tenant ON runs (tenant, created_at, run_id)",
    "CREATE INDEX runs_of_session ON runs (tenant, session_id, created_at, run_id) WHERE session_id IS NOT NULL",
    "CREATE UNIQUE INDEX runs_idempotency_key ON runs (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL",
    "CREATE INDEX runs_unfinished ON runs (gateway_id) WHERE finished_at IS NULL",
    "CREATE INDEX runs_to_expire ON runs (created_at) WHERE expired_at IS NULL",
    "CREATE INDEX runs_tombstones ON runs (expired_at) WHERE expired_at IS NOT NULL",
    """
    CREATE TABLE events (
        run_id uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
        seq integer NOT NULL,
        type text NOT NULL,
        fields json NOT NULL,
        PRIMARY KEY (run_id, seq)
    )
    """,
    """
    CREATE TABLE artifacts (
        artifact_id uuid PRIMARY KEY,
        run_id uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
        kind text NOT NULL,
        name text NOT NULL,
        content_type text NOT NULL,
        size_bytes bigint NOT NULL,
        sha256 bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        data bytea NOT NULL
    )
    """,
    "ALTER TABLE artifacts ALTER COLUMN data SET STORAGE EXTERNAL",
    "CREATE INDEX artifacts_of_run ON artifacts (run_id)",
    """
    CREATE TABLE sessions (
        tenant text NOT NULL,
        session_id text NOT NULL,
        gateway_id text NOT NULL,
        kernel_id uuid NOT NULL UNIQUE,
        credential_sha256 bytea,
        language text NOT NULL,
        state text NOT NULL,
        variables_lost boolean NOT NULL DEFAULT false,
        idle_timeout_s double precision NOT NULL,
        max_lifetime_s double precision NOT NULL,
        created_at timestamptz NOT NULL,
        last_used_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        runs integer NOT NULL DEFAULT 0,
        wall_ms double precision NOT NULL DEFAULT 0,
        cpu_ms double precision NOT NULL DEFAULT 0,
        memory_peak_bytes bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (tenant, session_id)
    )
    """,
    "CREATE INDEX sessions_of_gateway ON sessions (gateway_id)",
    "CREATE INDEX sessions_to_cull ON sessions (expires_at)",
    """
    CREATE TABLE tokens (
        token_sha256 bytea PRIMARY KEY,
        tenant text NOT NULL,
        name text NOT NULL,
        created_at timestamptz NOT NULL,
        revoked_at timestamptz
    )
    """,
    "CREATE INDEX tokens_of_tenant ON tokens (tenant)",
)


def upgrade() -> None:
    """Make the five tables and their indexes."""
    for statement in _STATEMENTS:
        op.execute(statement)
