"""The statements about sessions.

What is written of one names it by its gateway and the time when it was made, too: one of the same name that has taken
its place is left alone. `expires_at` always follows from the row's other columns.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, TextClause, bindparam, select

from gateway.store.statements import typed
from gateway.store.tables import sessions
from sessions.model import GatewayId, Session, SessionId, TenantId

_COLUMNS = tuple(column.name for column in sessions.columns)
_NAMING = "tenant", "session_id", "gateway_id"
_TAKEN_OVER = ", ".join(f"{name} = EXCLUDED.{name}" for name in _COLUMNS if name not in ("tenant", "session_id"))

# Nobody ends the sessions of a gateway that is gone for ever; once their time is over their names are free. Returns a
# row when it has added one.
ADD_SESSION = typed(
    f"""
    INSERT INTO sessions ({", ".join(_COLUMNS)})
    VALUES ({", ".join(f":{name}" for name in _COLUMNS)})
    ON CONFLICT (tenant, session_id) DO UPDATE SET {_TAKEN_OVER}
    WHERE sessions.gateway_id <> EXCLUDED.gateway_id AND sessions.expires_at <= EXCLUDED.created_at
    RETURNING 1
    """,  # noqa: S608 - made of the table's own names
    sessions, *_NAMING, "language", "jupyter",
)  # fmt: skip

UPDATE_SESSION = typed(
    """
    UPDATE sessions SET kernel_id = :kernel_id, generation = :generation, news = :news, version = :version
    WHERE tenant = :tenant AND session_id = :session_id AND gateway_id = :gateway_id AND created_at = :created_at
          AND version < :version
    """,
    sessions, *_NAMING,
)  # fmt: skip

RENEW_SESSION = typed(
    """
    UPDATE sessions SET last_used_at = greatest(last_used_at, :last_used_at),
                        idle_timeout_s = :idle_timeout_s, max_lifetime_s = :max_lifetime_s,
                        jupyter = CASE WHEN jupyter_version < :jupyter_version THEN :jupyter ELSE jupyter END,
                        jupyter_version = greatest(jupyter_version, :jupyter_version),
                        expires_at = least(created_at + make_interval(secs => :max_lifetime_s),
                                           greatest(last_used_at, :last_used_at)
                                           + make_interval(secs => :idle_timeout_s))
    WHERE tenant = :tenant AND session_id = :session_id AND gateway_id = :gateway_id AND created_at = :created_at
    """,
    sessions, *_NAMING, "jupyter",
)  # fmt: skip

REMOVE_SESSION = typed(
    """
    DELETE FROM sessions
    WHERE tenant = :tenant AND session_id = :session_id AND gateway_id = :gateway_id AND created_at = :created_at
    """,
    sessions, *_NAMING,
)  # fmt: skip

_PREFIX = "session_"

# Part of the statement that ends a run, `run`. The time-outs are the row's own: a client may be changing them just now.
# What has changed of the kernel since the run's end was put together stays, and the rest is written all the same.
AFTER_RUN = """
    UPDATE sessions SET kernel_id = CASE WHEN version < :session_version THEN :session_kernel_id ELSE kernel_id END,
                        generation = CASE WHEN version < :session_version THEN :session_generation ELSE generation END,
                        news = CASE WHEN version < :session_version THEN :session_news ELSE news END,
                        version = greatest(version, :session_version),
                        runs = :session_runs, wall_ms = :session_wall_ms, cpu_ms = :session_cpu_ms,
                        memory_peak_bytes = :session_memory_peak_bytes,
                        last_used_at = greatest(last_used_at, :session_last_used_at),
                        expires_at = least(created_at + make_interval(secs => max_lifetime_s),
                                           greatest(last_used_at, :session_last_used_at)
                                           + make_interval(secs => idle_timeout_s))
    FROM run
    WHERE tenant = :session_tenant AND session_id = :session_session_id AND gateway_id = :session_gateway_id
          AND created_at = :session_created_at
"""


def with_types_after_run(statement: TextClause) -> TextClause:
    """A statement of which `AFTER_RUN` is a part, with the types of its parameters."""
    return statement.bindparams(*(bindparam(_PREFIX + name, type_=sessions.c[name].type) for name in _NAMING))


def after_run_parameters(session: Session) -> dict[str, Any]:
    """For `AFTER_RUN`."""
    return {_PREFIX + name: value for name, value in parameters(session).items()}


def parameters(session: Session) -> dict[str, Any]:
    """All columns of a session's row."""
    return {
        "tenant": session.tenant,
        "session_id": session.session_id,
        "gateway_id": session.gateway_id,
        "kernel_id": session.kernel_id,
        "generation": session.generation,
        "news": session.news.value,
        "version": session.version,
        "language": session.language,
        "idle_timeout_s": session.idle_timeout_s,
        "max_lifetime_s": session.max_lifetime_s,
        "created_at": session.created_at,
        "last_used_at": session.last_used_at,
        "expires_at": session.expires_at,
        "runs": session.runs,
        "wall_ms": session.usage.wall_ms,
        "cpu_ms": session.usage.cpu_ms,
        "memory_peak_bytes": session.usage.memory_peak_bytes,
        "jupyter": None if session.jupyter is None else session.jupyter.as_json(),
        "jupyter_version": session.jupyter_version,
    }


def session(tenant: TenantId, session_id: SessionId) -> Select[tuple[object, ...]]:
    """The row of one session."""
    return select(sessions).where(sessions.c.tenant == tenant, sessions.c.session_id == session_id)


def sessions_of(gateway_id: GatewayId) -> Select[tuple[object, ...]]:
    """The rows of a gateway's sessions, oldest first."""
    oldest_first = sessions.c.created_at, sessions.c.tenant, sessions.c.session_id
    return select(sessions).where(sessions.c.gateway_id == gateway_id).order_by(*oldest_first)
