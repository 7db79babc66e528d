"""Migrations on a real PostgreSQL: whole or not at all, one at a time, and never backwards."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from run_records import NOW, new_run
from sqlalchemy import Engine, create_engine, event, inspect, text
from store_fixtures import execute, with_database

from gateway.store import tables
from gateway.store.engine import make_engine, parse_url
from gateway.store.migrate import MIGRATIONS, known_revisions, migrate
from gateway.store.postgres import PostgresStore
from sessions.errors import Misconfigured, SetUpFailed, StoreUnavailable
from sessions.model import ArtifactId, RunStatus, TenantId
from sessions.output.fold import RunFold
from sessions.settings import Limits

ROWS = (Path(__file__).parent / "rows_of_0004.sql").read_text(encoding="utf-8")


def table_names(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def upgrade(url: str, revision: str) -> None:
    """Bring an empty database to the shape of an earlier Cellblock."""
    scripts = alembic_config()
    engine = make_engine(url, pool_size=1, connect_timeout_s=5)
    with engine.connect().execution_options(isolation_level="READ COMMITTED") as connection, connection.begin():
        scripts.attributes["connection"] = connection
        command.upgrade(scripts, revision)
    engine.dispose()


def test_the_files_of_the_migrations_are_named_by_their_revisions() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert known_revisions() == [script.revision for script in scripts.walk_revisions()][::-1]


def test_a_migrated_database_is_recognised_without_alembic(database_url: str) -> None:
    script = (
        "import sys; from gateway.store.migrate import migrate\n"
        "assert not migrate(sys.argv[1]); assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, database_url], check=True)


def test_a_second_migration_has_nothing_to_do(empty_database_url: str) -> None:
    assert migrate(empty_database_url)
    assert not migrate(empty_database_url)
    assert table_names(empty_database_url) == {*tables.metadata.tables, "alembic_version"}


def test_the_migrated_shape_is_the_one_that_queries_expect(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, tables.metadata)
    engine.dispose()
    assert differences == []


async def test_runs_of_the_first_shape_are_numbered_by_age_and_new_ones_come_after(empty_database_url: str) -> None:
    upgrade(empty_database_url, "0001")
    old = [new_run(created_at=NOW - timedelta(days=days)) for days in (1, 3, 2)]
    adding = text(
        "INSERT INTO runs (run_id, tenant, gateway_id, language, timeout_s, created_at, status, code, variables)"
        " VALUES (:run_id, 'anonymous', :gateway_id, 'python', 30, :created_at, 'queued', '', '{}')"
    )
    engine = make_engine(empty_database_url, pool_size=1, connect_timeout_s=5)
    with engine.connect() as connection:
        for run in old:
            connection.execute(adding, asdict(run))
    engine.dispose()
    assert migrate(empty_database_url)
    store = PostgresStore(empty_database_url)
    young = new_run()
    await store.add_run(young)
    records = await store.unfinished_runs(young.gateway_id)
    await store.close()
    assert [record.run.run_id for record in records] == [run.run_id for run in (old[1], old[2], old[0], young)]


async def test_what_an_earlier_gateway_has_written_is_read_and_gone_on_with(empty_database_url: str) -> None:
    upgrade(empty_database_url, "0004")
    engine = make_engine(empty_database_url, pool_size=1, connect_timeout_s=5)
    with engine.connect() as connection:
        connection.exec_driver_sql(ROWS)
    engine.dispose()
    migrate(empty_database_url)
    store = PostgresStore(empty_database_url)
    failed = await store.find_run(TenantId("anonymous"), "key")
    assert failed is not None
    assert failed.result is not None
    assert (failed.status, failed.result.output) == (RunStatus.ERROR, "out \0\n")
    assert failed.result.exception is not None
    assert (failed.result.exception.name, failed.result.exception.line) == ("ZeroDivisionError", 6)
    refs = {**failed.result.images, **failed.result.files}
    assert sorted(refs) == ["a.txt", "figure-1.png"]
    text_file = await store.get_artifact(refs["a.txt"].id)
    assert text_file is not None
    assert text_file.data == b"text"
    (session,) = await store.sessions_of(failed.run.gateway_id)
    assert (session.session_id, session.runs, session.generation) == ("s", 1, 593589138)
    (unfinished,) = await store.unfinished_runs(failed.run.gateway_id)
    assert (unfinished.run.kernel_id, unfinished.status) == (session.kernel_id, RunStatus.RUNNING)
    events = await store.get_events(unfinished.run.run_id, 0, 10)
    await store.close()
    assert unfinished.progress is not None
    assert unfinished.progress.taken_seq == 11
    fold = RunFold(unfinished.run.run_id, Limits(), lambda: ArtifactId(""))
    fold.resume(events, unfinished.progress.state["execution"])
    result = fold.finish(RunStatus.OK, None, None)
    assert (result.output, result.execution_count) == ("before\n", 2)


def test_gateways_that_start_together_migrate_once(empty_database_url: str) -> None:
    barrier = threading.Barrier(4)

    def start() -> bool:
        barrier.wait(timeout=30)
        return migrate(empty_database_url)

    with ThreadPoolExecutor(4) as pool:
        did_it = [future.result() for future in [pool.submit(start) for _ in range(4)]]
    assert sorted(did_it) == [False, False, False, True]


@pytest.mark.parametrize("survived_statements", [0, 1, 6, 12, 17, 22, 30])
def test_an_interrupted_migration_leaves_nothing(empty_database_url: str, survived_statements: int) -> None:
    seen: list[str] = []

    def interrupt(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not statement.lstrip().startswith(("CREATE", "ALTER", "DROP", "INSERT", "UPDATE")):
            return
        seen.append(statement)
        if len(seen) > survived_statements:
            connection.connection.dbapi_connection.close()  # as when the process is killed: no rollback is sent

    event.listen(Engine, "before_cursor_execute", interrupt)
    try:
        with pytest.raises(StoreUnavailable):
            migrate(empty_database_url)
    finally:
        event.remove(Engine, "before_cursor_execute", interrupt)
    assert len(seen) == survived_statements + 1
    assert table_names(empty_database_url) == set()
    assert migrate(empty_database_url)


def test_a_database_of_a_newer_cellblock_is_refused(database_url: str) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SetUpFailed, match=r"newer Cellblock \(revision 9999\)"):
        migrate(database_url)


def test_a_database_that_cannot_hold_all_text_is_refused(postgres_server: str) -> None:
    execute(postgres_server, "CREATE DATABASE ascii_only ENCODING 'SQL_ASCII' TEMPLATE template0")
    try:
        with pytest.raises(SetUpFailed, match="encoding is SQL_ASCII"):
            migrate(with_database(postgres_server, "ascii_only"))
    finally:
        execute(postgres_server, "DROP DATABASE ascii_only")


def test_a_user_without_the_right_to_create_is_told_so(postgres_server: str, empty_database_url: str) -> None:
    execute(postgres_server, "CREATE ROLE nobody_much LOGIN")
    try:
        with pytest.raises(SetUpFailed, match="may not create tables"):
            migrate(empty_database_url.replace("postgres@", "nobody_much@"))
    finally:
        execute(postgres_server, "DROP ROLE nobody_much")


def test_nobody_listening_is_an_outage(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(StoreUnavailable):
        migrate(f"postgresql://postgres@/postgres?host={tmp_path_factory.mktemp('nobody')}")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_usual_ways_to_write_a_url_are_understood(scheme: str) -> None:
    assert parse_url(f"{scheme}://u:p@h:1/d").drivername == "postgresql+psycopg2"


@pytest.mark.parametrize(
    "url", ["mysql://u:secret@h/d", "secret", "postgresql+asyncpg://u:secret@h/d", "postgres://h:secret/"]
)
def test_other_urls_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(Misconfigured, match="postgresql://user") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


def test_artifact_bytes_are_neither_compressed_nor_inline(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        storage = connection.execute(
            text("SELECT attstorage FROM pg_attribute WHERE attrelid = 'artifacts'::regclass AND attname = 'data'")
        ).scalar_one()
    engine.dispose()
    assert storage == "e"
