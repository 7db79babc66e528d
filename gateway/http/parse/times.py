"""Times as they stand in answers and queries: ISO 8601, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from sessions.errors import InvalidRequest


def iso(moment: datetime | None) -> str | None:
    """`2026-01-02T03:04:05.000006Z`: always microseconds, always `Z`; None where there is no time."""
    if moment is None:
        return None
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_time(text: str, field: str) -> datetime:
    """A time from outside; one without an offset is in UTC. Raises InvalidRequest, which names the field."""
    try:
        moment = datetime.fromisoformat(text.strip().replace(" ", "+"))  # a plus sign in a query means a space
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f'"{field}" must be a time such as 2026-01-31T12:00:00Z, or the id of a run.') from error
