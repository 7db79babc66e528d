"""The statements that read runs, their events and artifacts, and what of the question becomes which condition.

Conditions that the question leaves open are left out, so that each question finds the index that it needs.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, Select, Text, and_, case, cast, func, literal, not_, or_, select

from gateway.store.rows import INPUT_COLUMNS, SUMMARY_COLUMNS
from gateway.store.tables import artifacts, events, runs
from sessions.model import ArtifactId, GatewayId, Run, RunId, RunQuery, TenantId

original = artifacts.alias("original")
_IS_COPY = and_(artifacts.c.size_bytes > 0, func.octet_length(artifacts.c.data) == 0)

_Any = Select[tuple[object, ...]]
RunSelect = _Any

RECORD_COLUMNS = tuple(column for column in runs.columns if column.name not in INPUT_COLUMNS)
"""What a record of a run is made of. Inputs are large, and nobody is shown them."""

_PAGE_BYTES = 256 << 10
"""A page of events ends with the event that exceeds this, as the database counts them."""


def run(run_id: RunId) -> _Any:
    """The row of one run."""
    return select(*RECORD_COLUMNS).where(runs.c.run_id == run_id)


def run_of_key(tenant: TenantId, idempotency_key: str) -> _Any:
    """The row that has this key."""
    return select(*RECORD_COLUMNS).where(_has_key(tenant, idempotency_key))


def inputs(run_id: RunId) -> _Any:
    """What one run was given, as long as it has not ended."""
    return select(*(runs.c[name] for name in INPUT_COLUMNS)).where(runs.c.run_id == run_id)


def if_small(statement: RunSelect, most_bytes: int) -> RunSelect:
    """Select the run only if its texts are no larger than this. Nothing has to be decompressed for it."""
    texts = (runs.c.output, runs.c.stderr, runs.c.code)
    lengths = [func.octet_length(text) for text in texts]
    lengths += [func.pg_column_size(column) for column in (runs.c.answer, runs.c.variables, runs.c.progress)]
    total: ColumnElement[int] = sum((func.coalesce(length, 0) for length in lengths[1:]), func.coalesce(lengths[0], 0))
    return statement.where(total <= most_bytes)


def run_bytes(run_id: RunId) -> Select[Any]:
    """The size of the run's texts and JSON."""
    texts = (runs.c.output, runs.c.stderr, runs.c.code)
    as_texts = (cast(column, Text) for column in (runs.c.answer, runs.c.variables, runs.c.jupyter, runs.c.progress))
    size_bytes: ColumnElement[int] = literal(0)
    for text in (*texts, *as_texts):
        size_bytes += func.coalesce(func.octet_length(text), 0)
    return select(size_bytes.label("size_bytes")).where(runs.c.run_id == run_id)


def only_id(statement: RunSelect) -> _Any:
    """Select of the run no more than its id."""
    return statement.with_only_columns(runs.c.run_id)


def runs_in_the_way(of: Run) -> _Any:
    """The rows for whose sake this run could not be added: one of its id, or one of its key."""
    same_run = runs.c.run_id == of.run_id
    if of.idempotency_key is None:
        return select(*RECORD_COLUMNS).where(same_run)
    return select(*RECORD_COLUMNS).where(or_(same_run, _has_key(of.tenant, of.idempotency_key)))


def listed_runs(query: RunQuery) -> _Any:
    """The rows of a list, newest first, without the large columns."""
    columns = runs.c
    conditions: list[ColumnElement[bool]] = [columns.tenant == query.tenant, columns.expired_at.is_(None)]
    if query.session_id is not None:
        conditions.append(columns.session_id == query.session_id)
    if query.status is not None:
        conditions.append(columns.status == query.status.value)
        if not query.status.is_final():
            conditions.append(columns.finished_at.is_(None))  # says the same, and of these there is a small index
    if query.before_number is not None:
        conditions.append(columns.number < query.before_number)
    if query.created_before is not None:
        conditions.append(columns.created_at < query.created_before)
    if query.created_from is not None:
        conditions.append(columns.created_at >= query.created_from)
    shown = (columns[name] for name in SUMMARY_COLUMNS)
    return select(*shown).where(*conditions).order_by(columns.number.desc()).limit(query.limit)


def unfinished_epochs(gateway_id: GatewayId) -> _Any:
    """The ids of this gateway's runs that have not ended, each with its epoch."""
    return select(runs.c.run_id, runs.c.epoch).where(runs.c.gateway_id == gateway_id, runs.c.finished_at.is_(None))


def events_after(run_id: RunId, after: int, limit: int) -> _Any:
    """The next rows of a run's events: at most `limit`, and no more than a page has room for, but one at least."""
    size_bytes = func.pg_column_size(events.c.fields).label("size_bytes")
    found = select(events.c.seq, events.c.type, events.c.fields, size_bytes)
    next_ones = found.where(events.c.run_id == run_id, events.c.seq > after).order_by(events.c.seq).limit(limit)
    rows = next_ones.subquery()
    before = (func.sum(rows.c.size_bytes).over(order_by=rows.c.seq) - rows.c.size_bytes).label("before_bytes")
    page = select(rows.c.seq, rows.c.type, rows.c.fields, before).subquery()
    fitting = select(page.c.seq, page.c.type, page.c.fields).where(page.c.before_bytes <= _PAGE_BYTES)
    return fitting.order_by(page.c.seq)


def artifact(artifact_id: ArtifactId) -> _Any:
    """The row of one artifact, with its bytes, which another row of the run may have; none when that is gone."""
    found = _data_of_original(original.c.data)
    data = case((_IS_COPY, found), else_=artifacts.c.data).label("data")
    columns = [column for column in artifacts.c if column.name != "data"]
    return select(*columns, data).where(artifacts.c.artifact_id == artifact_id, or_(not_(_IS_COPY), found.is_not(None)))


def artifact_ref(artifact_id: ArtifactId) -> _Any:
    """The same without its bytes."""
    columns = (column for column in artifacts.c if column is not artifacts.c.data)
    return select(*columns).where(artifacts.c.artifact_id == artifact_id)


def artifact_piece(artifact_id: ArtifactId, offset: int, size_bytes: int) -> _Any:
    """A piece of its bytes, which another row of the run may have."""
    own, others = (func.substring(table.c.data, offset + 1, size_bytes) for table in (artifacts, original))
    piece = case((_IS_COPY, _data_of_original(others)), else_=own).label("data")
    return select(piece).where(artifacts.c.artifact_id == artifact_id)


def _data_of_original(data: ColumnElement[bytes]) -> ScalarSelect[bytes]:
    """`data` of the row that has the bytes of a copy."""
    found = select(data).where(
        original.c.run_id == artifacts.c.run_id,
        original.c.sha256 == artifacts.c.sha256,
        func.octet_length(original.c.data) == artifacts.c.size_bytes,
    )
    return found.limit(1).scalar_subquery()


def _has_key(tenant: TenantId, idempotency_key: str) -> ColumnElement[bool]:
    return and_(runs.c.tenant == tenant, runs.c.idempotency_key == idempotency_key)
