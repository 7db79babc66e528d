"""Fixtures with a real PostgreSQL: one server per test process, and a migrated database of its own for each test.

A pytest plugin. Tests that stop or break a server start one themselves, as `OwnServer`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Connection, create_engine, make_url, text

from gateway.store.embedded import postgres as embedded_postgres
from gateway.store.embedded.postgres import EmbeddedPostgres
from gateway.store.migrate import VERSIONS, migrate
from gateway.store.postgres import PostgresStore

# What a crash of this machine would do to a test database is no matter.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}

_TEMPLATE = "cellblock_template"


def execute(url: str, *statements: str) -> None:
    """Run SQL outside any transaction."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
    finally:
        engine.dispose()


def with_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def copy_template_data_dir(data_dir: Path) -> None:
    """Make `data_dir` a gateway's data directory with a migrated, empty database, as `cellblock serve` would.

    A copy takes a tenth of the time of initdb and the migrations. Owner and permissions are kept: as root, the files
    belong to the account that the server runs as.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", _template_pg_dir(), data_dir / "pg"], check=True)


@cache
def _template_pg_dir() -> Path:
    """Where the template is. The first test process on this machine makes it, the others wait for that one.

    There is one for each user and each state of the migrations and of the code that calls initdb.
    """
    sources = [*sorted(VERSIONS.glob("*.py")), Path(embedded_postgres.__file__)]
    state = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    home = Path(tempfile.gettempdir()) / f"cellblock-template-{os.geteuid()}-{state}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.is_symlink() or home.stat().st_uid != os.geteuid():
        raise RuntimeError(f"{home} belongs to somebody else")
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            shutil.rmtree(home / "data", ignore_errors=True)
            with running_postgres(home / "data", settings=FAST) as server:
                migrate(server.start())
            (home / "complete").touch()
    return home / "data" / "pg"


@contextmanager
def running_postgres(data_dir: Path, **options: Any) -> Iterator[EmbeddedPostgres]:
    """A server that is stopped in the end."""
    server = EmbeddedPostgres(data_dir, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def postgres_dir() -> Iterator[Path]:
    """A data directory with a migrated database, outside pytest's own: as root the server has an account of its own,
    and a second pytest closes that directory to all others.
    """
    directory = Path(tempfile.mkdtemp(prefix="cellblock-postgres-"))
    try:
        copy_template_data_dir(directory)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a running server's maintenance database."""
    with postgres_dir() as data_dir, running_postgres(data_dir, settings=FAST) as server:
        yield server.start()


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> str:
    """The name of a database to copy: a server's own, `postgres`, cannot be copied while anybody is connected to it."""
    execute(with_database(postgres_server, "template1"), f"CREATE DATABASE {_TEMPLATE} TEMPLATE postgres")
    return _TEMPLATE


@pytest.fixture
def empty_database_url(postgres_server: str) -> Iterator[str]:
    """URL of a new database without tables."""
    yield from _database(postgres_server, "template1")


@pytest.fixture
def database_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    """URL of a new database with all tables, and nothing in them."""
    yield from _database(postgres_server, migrated_template)


def _database(server_url: str, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    execute(server_url, f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    try:
        yield with_database(server_url, name)
    finally:
        execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def postgres_store(database_url: str) -> AsyncIterator[PostgresStore]:
    """A store on a database of its own."""
    async with using_store(database_url) as store:
        yield store


@asynccontextmanager
async def using_store(database_url: str, **options: Any) -> AsyncIterator[PostgresStore]:
    """A store that is closed in the end."""
    store = PostgresStore(database_url, **options)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """Another way into the same database, for what no store tells."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


class OwnServer:
    """A server that a test may stop, kill, hang and start again at the same URL."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._server = EmbeddedPostgres(data_dir, settings={"fsync": "off"})  # only a crash of the machine would tell
        self.url = ""

    def start(self) -> None:
        self.url = self._server.start()

    def stop(self) -> None:
        self.resume()
        self._server.stop()

    def kill(self) -> None:
        """As the kernel does when memory runs out: no server process gets to do anything more."""
        self._signal(signal.SIGKILL)
        self._server.stop()

    def hang(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # connections end when they like
                process.send_signal(number)

    def processes(self) -> list[psutil.Process]:
        if self._server._process is None:
            return []
        postmaster = psutil.Process(self._server.pid)
        return [postmaster, *postmaster.children(recursive=True)]


@pytest.fixture
def own_server() -> Iterator[OwnServer]:
    """A running, migrated server that nobody else uses."""
    with postgres_dir() as directory:
        server = OwnServer(directory)
        try:
            server.start()
            yield server
        finally:
            server.stop()
