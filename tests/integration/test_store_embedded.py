"""The embedded PostgreSQL: private, its own master, and there again after any crash."""

from __future__ import annotations

import fcntl
import os
import pwd
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from store_fixtures import FAST, copy_template_data_dir, execute, running_postgres

from gateway.store.embedded import postmaster
from gateway.store.embedded.postgres import EmbeddedPostgres
from gateway.store.embedded.service_account import ACCOUNT_NAME, for_postgres, grant_passage
from sessions.errors import SetUpFailed

DEADLINE_S = 30.0
IN_A_CONTAINER = ("unshare", "--pid", "--ipc", "--fork", "--mount-proc")
"""It sees no process and no shared memory but its own."""

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


def test_the_lock_is_held_for_as_long_as_any_process_of_the_server_lives(data_dir: Path) -> None:
    with running_postgres(data_dir, settings=FAST) as server:
        processes = server_processes(server)
        assert not is_free(data_dir)
        *_, last = sorted(processes, key=lambda process: process.pid)
        for process in processes:
            process.suspend()
        for process in processes:
            if process != last:
                process.kill()
        psutil.wait_procs([process for process in processes if process != last], DEADLINE_S)
        assert not is_free(data_dir)
        last.kill()
        deadline = time.monotonic() + DEADLINE_S
        while not is_free(data_dir):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_server_of_another_container_on_the_same_volume_is_left_alone(data_dir: Path, *, exclusive: bool) -> None:
    """The gateway there was killed, and its server lives on, or it goes on and this is a command beside it."""
    if subprocess.run([*IN_A_CONTAINER, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no right to make process namespaces")
    script = ["sh", "-c", '"$@"; sleep 600', "-", *start_command(data_dir)]
    elsewhere = subprocess.Popen([*IN_A_CONTAINER, *script], stdout=subprocess.PIPE, text=True)
    try:
        assert elsewhere.stdout is not None
        url = elsewhere.stdout.readline().strip()
        lock = data_dir / "pg" / "postmaster.pid"
        known = lock.read_text()
        command = start_command(data_dir, exclusive=exclusive, before="postmaster._LEFTOVER_PATIENCE_S = 0.5")
        done = subprocess.run([*IN_A_CONTAINER, *command], capture_output=True, text=True, check=False, timeout=60)
        assert "SetUpFailed: A PostgreSQL server that cannot be seen from here" in done.stderr
        assert lock.read_text() == known
        assert count_of(url) == 1
    finally:
        for process in psutil.Process(elsewhere.pid).children():
            process.kill()  # the first process of the namespace, with which all others go
        elsewhere.communicate(timeout=DEADLINE_S)
    with running_postgres(data_dir, exclusive=exclusive, settings=FAST) as server:
        assert count_of(server.start()) == 1


def test_two_that_start_it_at_once_get_one_server(empty_data_dir: Path) -> None:
    commands = [subprocess.Popen(start_command(empty_data_dir), stdout=subprocess.PIPE) for _ in range(3)]
    urls = {command.communicate(timeout=150)[0] for command in commands}
    assert len(urls) == 1
    with running_postgres(empty_data_dir, exclusive=True, settings=FAST) as server:
        assert count_of(server.start()) == 1


def test_whoever_comes_while_the_database_is_being_made_waits_for_it(
    empty_data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postmaster, "_LEFTOVER_PATIENCE_S", 0.1)
    maker, waiter = (postmaster.open_lock(empty_data_dir / "pg") for _ in range(2))
    assert postmaster.find_running(empty_data_dir / "pg", maker) is None
    threading.Timer(1.0, os.close, [maker]).start()
    assert postmaster.find_running(empty_data_dir / "pg", waiter) is None
    os.close(waiter)


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


def is_free(data_dir: Path) -> bool:
    with (data_dir / "pg.lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def start_command(data_dir: Path, *, exclusive: bool = True, before: str = "") -> list[str]:
    """A process that starts a server and is then killed, as a gateway may be."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from gateway.store.embedded import postmaster\n"
        "from gateway.store.embedded.postgres import EmbeddedPostgres\n"
        f"{before}\n"
        f"url = EmbeddedPostgres(Path(sys.argv[1]), exclusive={exclusive}, settings={FAST!r}).start()\n"
        "print(url, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    return [sys.executable, "-c", script, str(data_dir)]


def start_and_die(data_dir: Path) -> str:
    done = subprocess.run(start_command(data_dir), capture_output=True, text=True, check=False)
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
