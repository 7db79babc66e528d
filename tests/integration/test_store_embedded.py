"""The embedded PostgreSQL: private, its own master, and there again after any crash."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from store_fixtures import FAST, copy_template_data_dir, execute, running_postgres

from gateway.store.embedded.postgres import EmbeddedPostgres
from gateway.store.embedded.service_account import ACCOUNT_NAME, for_postgres, grant_passage
from sessions.errors import SetUpFailed

DEADLINE_S = 20.0

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what root has to prepare")


@pytest.fixture
def empty_data_dir(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def data_dir(empty_data_dir: Path) -> Path:
    copy_template_data_dir(empty_data_dir)
    return empty_data_dir


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    with running_postgres(data_dir, exclusive=True, settings=FAST) as running:
        yield running


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def count_of(url: str, query: str = "SELECT 1") -> int:
    with psycopg2.connect(url.replace("+psycopg2", "")) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        (count,) = cursor.fetchone() or (0,)
    connection.close()
    return int(count)


def test_data_outlives_the_server(data_dir: Path) -> None:
    with running_postgres(data_dir) as first:
        url = first.start()
        execute(url, "CREATE TABLE kept AS SELECT 42 AS n")
    with running_postgres(data_dir) as second:
        assert second.start() == url
        assert count_of(url, "SELECT n FROM kept") == 42


def test_nobody_else_can_reach_database_or_socket(server: EmbeddedPostgres, data_dir: Path) -> None:
    assert permissions(server.pg_dir) == 0o700
    assert permissions(server.pg_dir / ".s.PGSQL.5432") == 0o700
    assert permissions(server.log_path) == 0o600
    assert permissions(data_dir) & 0o007 == 0
    listening = [c for p in server_processes(server) for c in p.net_connections("inet")]
    assert listening == []


@as_root
@pytest.mark.parametrize("target", ["data", "postgres.log", ".s.PGSQL.5432"])
def test_another_user_is_refused(server: EmbeddedPostgres, data_dir: Path, target: str) -> None:
    path = {"data": data_dir, "postgres.log": server.log_path}.get(target, server.pg_dir / target)
    script = (
        "import os, socket, sys\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "path = sys.argv[1]\n"
        "try:\n"
        "    socket.socket(socket.AF_UNIX).connect(path) if 'PGSQL' in path else os.listdir(path)\n"
        "except PermissionError: sys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == 7


@as_root
def test_directories_above_stay_closed_to_all_but_the_database(data_dir: Path) -> None:
    run_dir = data_dir / "run"
    run_dir.mkdir(mode=0o700)
    with running_postgres(data_dir, settings=FAST) as server:
        server.start()
        assert permissions(run_dir) == 0o700
        assert permissions(data_dir) & 0o007 == 0
        uid = pwd.getpwnam(ACCOUNT_NAME).pw_uid
        script = f"import os; os.setgroups([]); os.setuid({uid}); os.listdir({str(data_dir)!r})"
        refused = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "PermissionError" in refused.stderr


@as_root
def test_a_directory_that_was_closed_again_is_opened_again(data_dir: Path) -> None:
    account = for_postgres()
    assert account is not None
    grant_passage(account, data_dir)
    grant_passage(account, data_dir)
    data_dir.chmod(0o700)  # this also takes the access control list's effect
    with running_postgres(data_dir, settings=FAST) as server:
        assert count_of(server.start()) == 1


def test_a_path_too_long_for_a_socket_gets_a_private_short_one(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30) / "data"
    copy_template_data_dir(data_dir)
    with running_postgres(data_dir, settings=FAST) as server:
        url = server.start()
        assert count_of(url) == 1
        socket_dir = Path(url.partition("host=")[2].replace("%2F", "/"))
        assert permissions(socket_dir) == 0o700
    with running_postgres(data_dir, settings=FAST) as server:
        assert server.start() == url
    assert list(socket_dir.iterdir()) == []
    socket_dir.rmdir()


def test_a_short_socket_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = tmp_path / ("long" * 30) / "data"
    copy_template_data_dir(data_dir)
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as shared:
        monkeypatch.setattr(tempfile, "tempdir", shared)
        with running_postgres(data_dir, settings=FAST) as server:
            server.start()
        (planted,) = Path(shared).iterdir()
        planted.chmod(0o777)
        with pytest.raises(SetUpFailed, match="belongs to somebody else"):
            EmbeddedPostgres(data_dir, settings=FAST).start()


def test_a_signal_to_the_terminals_process_group_does_not_reach_it(server: EmbeddedPostgres) -> None:
    assert os.getsid(server.pid) == server.pid != os.getsid(0)
    assert os.getpgid(server.pid) != os.getpgid(0)


def test_a_killed_server_is_started_again(server: EmbeddedPostgres) -> None:
    url, before = server.start(), server.pid
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_S
    while server.pid == before and time.monotonic() < deadline:
        time.sleep(0.05)
    wait_until_answers(url)
    assert server.pid != before


def test_a_server_left_by_a_killed_gateway_is_taken_over_and_stopped(data_dir: Path) -> None:
    url = start_and_die(data_dir)
    assert count_of(url) == 1
    server = EmbeddedPostgres(data_dir, exclusive=True, settings=FAST)
    assert server.start() == url
    pid = server.pid
    server.stop()
    assert not psutil.pid_exists(pid)


def test_a_command_beside_a_running_gateway_leaves_its_server_alone(server: EmbeddedPostgres, data_dir: Path) -> None:
    url = server.start()
    with running_postgres(data_dir) as beside:
        assert beside.start() == url
        assert beside.pid == server.pid
    assert count_of(url) == 1


@pytest.mark.parametrize("pid", ["init", "ours", "nobody", "nonsense"])
def test_a_stale_lock_file_with_anybodys_number_is_no_obstacle(data_dir: Path, pid: str) -> None:
    number = {"init": "1", "ours": str(os.getpid()), "nobody": "4194304"}.get(pid, pid)
    with running_postgres(data_dir, settings=FAST) as server:
        server.start()
        lock = (server.pg_dir / "postmaster.pid").read_text().splitlines()
        for process in server_processes(server):
            process.kill()
    (server.pg_dir / "postmaster.pid").write_text("\n".join([number, *lock[1:]]) + "\n")
    with running_postgres(data_dir, settings=FAST) as server:
        assert count_of(server.start()) == 1


def test_an_interrupted_first_start_is_begun_anew(empty_data_dir: Path) -> None:
    half = empty_data_dir / "pg.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    with running_postgres(empty_data_dir, settings=FAST) as server:
        assert count_of(server.start()) == 1
    assert not half.exists()


def test_a_database_of_a_version_that_is_not_installed_is_refused(empty_data_dir: Path) -> None:
    (empty_data_dir / "pg").mkdir(mode=0o700)
    (empty_data_dir / "pg" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(SetUpFailed, match=r"made by PostgreSQL 9\.6"):
        EmbeddedPostgres(empty_data_dir).start()


def test_a_server_that_cannot_start_says_why(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir, settings={"shared_buffers": "no size"})
    with pytest.raises(SetUpFailed, match="shared_buffers"):
        server.start()
    assert server._process is None


def server_processes(server: EmbeddedPostgres) -> list[psutil.Process]:
    postmaster = psutil.Process(server.pid)
    return [postmaster, *postmaster.children(recursive=True)]


def start_and_die(data_dir: Path) -> str:
    """Start a server in a process that is then killed, as a gateway may be."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from gateway.store.embedded.postgres import EmbeddedPostgres\n"
        f"url = EmbeddedPostgres(Path(sys.argv[1]), exclusive=True, settings={FAST!r}).start()\n"
        "print(url, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, data_dir], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout.strip()


def wait_until_answers(url: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            assert count_of(url) == 1
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
