"""The statements about sessions.

Every write names a session by its gateway and its creation time, too, so that it leaves alone a later session of the
same name. `expires_at` always follows from the row's other columns.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, select

from gateway.store.rows import from_session
from gateway.store.statements import insert, typed
from gateway.store.tables import sessions
from sessions.model import GatewayId, Session, SessionId, TenantId

_COLUMNS = tuple(column.name for column in sessions.columns)
_TAKEN_OVER = ", ".join(f"{name} = EXCLUDED.{name}" for name in _COLUMNS if name not in ("tenant", "session_id"))

# Nobody ends the sessions of a gateway that is gone for ever; once their time is over their names are free. Returns a
# row when it has added one.
ADD_SESSION = typed(
    f"""
    {insert(sessions, _COLUMNS)}
    ON CONFLICT (tenant, session_id) DO UPDATE SET {_TAKEN_OVER}
    WHERE sessions.gateway_id <> EXCLUDED.gateway_id AND sessions.expires_at <= EXCLUDED.created_at
    RETURNING 1
    """,
    sessions,
)

UPDATE_SESSION = typed(
    """
    UPDATE sessions SET kernel_id = :kernel_id, generation = :generation, news = :news, version = :version
    WHERE tenant = :tenant AND session_id = :session_id AND gateway_id = :gateway_id AND created_at = :created_at
          AND version < :version
    """,
    sessions,
)

RENEW_SESSION = typed(
    """
    UPDATE sessions SET last_used_at = greatest(last_used_at, :last_used_at),
                        idle_timeout_s = :idle_timeout_s, max_lifetime_s = :max_lifetime_s,
                        cpu_ms = greatest(cpu_ms, :cpu_ms),
                        memory_peak_bytes = greatest(memory_peak_bytes, :memory_peak_bytes),
                        jupyter = CASE WHEN jupyter_version < :jupyter_version THEN :jupyter ELSE jupyter END,
                        jupyter_version = greatest(jupyter_version, :jupyter_version),
                        expires_at = least(created_at + make_interval(secs => :max_lifetime_s),
                                           greatest(last_used_at, :last_used_at)
                                           + make_interval(secs => :idle_timeout_s))
    WHERE tenant = :tenant AND session_id = :session_id AND gateway_id = :gateway_id AND created_at = :created_at
    """,
    sessions,
)

REMOVE_SESSION = typed(
    """
    DELETE FROM sessions
    WHERE tenant = :tenant AND session_id = :session_id AND gateway_id = :gateway_id AND created_at = :created_at
    """,
    sessions,
)

# Part of the statement that ends a run, `run`. The time-outs are the row's own: a client may be changing them just now.
# What has changed of the kernel since the run's end was put together stays, and the rest is written all the same.
AFTER_RUN = """
    UPDATE sessions SET kernel_id = CASE WHEN version < :session_version THEN :session_kernel_id ELSE kernel_id END,
                        generation = CASE WHEN version < :session_version THEN :session_generation ELSE generation END,
                        news = CASE WHEN version < :session_version THEN :session_news ELSE news END,
                        version = greatest(version, :session_version),
                        runs = :session_runs, wall_ms = :session_wall_ms,
                        cpu_ms = greatest(cpu_ms, :session_cpu_ms),
                        memory_peak_bytes = greatest(memory_peak_bytes, :session_memory_peak_bytes),
                        last_used_at = greatest(last_used_at, :session_last_used_at),
                        expires_at = least(created_at + make_interval(secs => max_lifetime_s),
                                           greatest(last_used_at, :session_last_used_at)
                                           + make_interval(secs => idle_timeout_s))
    FROM run
    WHERE tenant = :session_tenant AND session_id = :session_session_id AND gateway_id = :session_gateway_id
          AND created_at = :session_created_at
"""


def after_run_parameters(session: Session) -> dict[str, Any]:
    """For `AFTER_RUN`."""
    return {f"session_{name}": value for name, value in from_session(session).items()}


def session(tenant: TenantId, session_id: SessionId) -> Select[tuple[object, ...]]:
    """The row of one session."""
    return select(sessions).where(sessions.c.tenant == tenant, sessions.c.session_id == session_id)


def sessions_of(gateway_id: GatewayId) -> Select[tuple[object, ...]]:
    """The rows of a gateway's sessions, oldest first."""
    oldest_first = sessions.c.created_at, sessions.c.tenant, sessions.c.session_id
    return select(sessions).where(sessions.c.gateway_id == gateway_id).order_by(*oldest_first)
