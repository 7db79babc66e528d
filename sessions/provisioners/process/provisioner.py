"""The `process` engine, for development: one supervisor per kernel as a plain process of this machine.

It isolates nothing: the code it runs can do whatever the gateway's user can. process_tree.py ends what it starts.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from kernel_image.protocol import SOCKET_NAME, UNIX_PATH_MAX_BYTES
from sessions.errors import EngineUnavailable, Misconfigured
from sessions.model import GatewayId, KernelId
from sessions.ports import Fate, ForkedKernel, LaunchSpec
from sessions.provisioners.process.environment import matplotlib_variables
from sessions.provisioners.process.process_tree import end_all, end_tree, process_identity, processes_at_home
from sessions.provisioners.process.template import Template
from sessions.provisioners.supervisor_settings import USER_NAME, supervisor_settings
from sessions.settings import Limits

T = TypeVar("T")
KernelIds = list[KernelId]

_THREADS = 4
_REMEMBERED = 1_024
_RECORD = "record.json"
_SHORT_ID_LENGTH = 12
_LONGEST_SOCKET = "ipc/k99999-9"
_REAP_TIMEOUT_S = 5.0
_REAP_PAUSE_S = 0.01
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What a gateway started later has to know of a supervisor. `pid` is 0 until it has been started."""

    kernel_id: str
    gateway_id: str
    pid: int = 0
    identity: str = ""


class ProcessProvisioner:
    """Launches, lists and kills supervisors below `root`, one directory each: `<root>/<short id>/{work,ipc,home}`.

    The records are in those directories; in memory are only the supervisors that this very process has had started
    (`_started`) and how the latest of them ended (`_fates`). Raises Misconfigured when `root` is too long a path for
    sockets.
    """

    name = "process"

    def __init__(self, gateway_id: GatewayId, root: Path, python: Path = Path(sys.executable)) -> None:
        """`python` is the interpreter of supervisors and kernels; `kernel_image` and ipykernel are importable there."""
        some_directory = root / ("0" * _SHORT_ID_LENGTH)
        excess = len(os.fsencode(some_directory / _LONGEST_SOCKET)) - UNIX_PATH_MAX_BYTES
        if excess > 0:
            raise Misconfigured(
                f"The path of `server.data_dir` is {excess} bytes too long for the unix sockets below it: "
                "choose a shorter one."
            )
        self._gateway_id = gateway_id
        self._root = root
        self._environment = _environment(python)
        self._template = Template(python, self._environment, len(os.fsencode(some_directory / "home")))
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="process-engine")
        self._removing = threading.Lock()
        self._reaping = threading.Lock()
        self._started: dict[KernelId, int] = {}
        self._fates: OrderedDict[KernelId, Fate] = OrderedDict()

    async def launch(self, spec: LaunchSpec) -> None:
        """Start a supervisor in a process session of its own. Raises EngineUnavailable, with nothing left behind."""
        launching = asyncio.ensure_future(self._call(lambda: self._launch(spec)))
        try:
            await asyncio.shield(launching)
        except asyncio.CancelledError:
            await asyncio.wait([launching])
            await self.kill(spec.kernel_id)
            raise
        except OSError as error:
            await self.kill(spec.kernel_id)
            raise EngineUnavailable(f"A kernel process could not be started ({error.strerror or error}).") from error

    async def list(self) -> list[KernelId]:
        """What the records below `root` say, half-made and dead ones included."""
        return await self._call(self._list)

    async def kill(self, kernel_id: KernelId) -> None:
        """End the supervisor and every process it brought about, and remove the directory."""
        try:
            await self._call(lambda: self._kill(kernel_id))
        except OSError as error:
            raise EngineUnavailable(f"The directory of a kernel cannot be removed ({error.strerror}).") from error

    async def fate(self, kernel_id: KernelId) -> Fate | None:
        """The exit code where this gateway started the process; otherwise only whether it has ended."""
        return await self._call(lambda: self._fate(kernel_id))

    async def check(self) -> None:
        """Raise EngineUnavailable unless the root directory can be made."""
        try:
            await self._call(self._make_root)
        except OSError as error:
            raise EngineUnavailable(
                f"The directory for kernel processes cannot be made ({error.strerror}): set `server.data_dir` to "
                "another one."
            ) from error

    async def fork(self, kernel_id: KernelId, number: int) -> ForkedKernel:
        """Not here: supervisors that are plain processes are not told to ask."""
        del kernel_id, number
        raise EngineUnavailable("Kernels are forked where they run.")

    def stop_forking(self, why: str) -> None:
        """There is nothing to stop."""

    def zygote(self) -> None:
        """There is none."""

    def warnings(self) -> tuple[str, ...]:
        """None."""
        return ()

    def missing_limits(self, seen: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
        """Nothing is missing where nothing is promised: processes have no limits of their own."""
        del seen, limits
        return ()

    async def close(self) -> None:
        """End the threads and the template. Supervisors go on: a later gateway finds their records."""
        await asyncio.to_thread(self._executor.shutdown)
        await asyncio.to_thread(self._template.close)

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    def _make_root(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _launch(self, spec: LaunchSpec) -> None:
        (spec.socket_dir / SOCKET_NAME).stat()
        self._make_root()
        directory = self._directory(spec.kernel_id)
        directory.mkdir(mode=0o700)
        for name in ("work", "ipc", "home"):
            (directory / name).mkdir(mode=0o700)
        record = ProcessRecord(spec.kernel_id, spec.gateway_id)
        _write_record(directory, record)
        settings = supervisor_settings(
            spec,
            gateway=f"unix:{spec.socket_dir / SOCKET_NAME}",
            work_dir=str(directory / "work"),
            ipc_dir=str(directory / "ipc"),
            home_dir=str(directory / "home"),
        )
        environment = {**self._environment, "HOME": str(directory / "home")}
        pid = self._template.launch(environment, settings.to_json(), directory / "log")
        self._started[spec.kernel_id] = pid
        _write_record(directory, replace(record, pid=pid, identity=process_identity(pid) or ""))

    def _list(self) -> KernelIds:
        records = [_read_record(path.parent) for path in self._root.glob(f"*/{_RECORD}")]
        return [KernelId(record.kernel_id) for record in records if record and record.gateway_id == self._gateway_id]

    def _kill(self, kernel_id: KernelId) -> None:
        directory = self._directory(kernel_id)
        record = _read_record(directory)
        if record is not None and record.gateway_id != self._gateway_id:
            return
        if record is not None and _is_alive(record):
            end_tree(record.pid)
        # A supervisor that died before this left its orphans to init; they are known by their HOME.
        end_all(processes_at_home(directory / "home"))
        deadline = time.monotonic() + _REAP_TIMEOUT_S
        while self._reap(kernel_id) is None and kernel_id in self._started and time.monotonic() < deadline:
            time.sleep(_REAP_PAUSE_S)
        with self._removing:
            if directory.exists():
                _remove_directory(directory)

    def _fate(self, kernel_id: KernelId) -> Fate | None:
        if (known := self._reap(kernel_id)) is not None:
            return known
        record = _read_record(self._directory(kernel_id))
        if kernel_id in self._started or record is None or _is_alive(record):
            return None
        return Fate(exit_code=None, oom=False)

    def _reap(self, kernel_id: KernelId) -> Fate | None:
        """Ask for the end of a supervisor that this gateway has started; its fate when that is known, now or before."""
        with self._reaping:
            pid = self._started.get(kernel_id)
            if pid is None:
                return self._fates.get(kernel_id)
            try:
                status = self._template.wait(pid)
            except ChildProcessError:  # another template than today's has forked it
                del self._started[kernel_id]
                return None
            if status is None:
                return None
            code = os.waitstatus_to_exitcode(status)
            # 128 + signal, as Docker and shells have it.
            fate = Fate(exit_code=code if code >= 0 else 128 - code, oom=False)
            self._fates[kernel_id] = fate
            del self._started[kernel_id]
            while len(self._fates) > _REMEMBERED:
                self._fates.popitem(last=False)
            return fate

    def _directory(self, kernel_id: KernelId) -> Path:
        return self._root / kernel_id.replace("-", "")[:_SHORT_ID_LENGTH]


def _environment(python: Path) -> dict[str, str]:
    """What is the same for all supervisors.

    Nothing else of the gateway's environment passes: it may hold tokens and the database's password.
    """
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    if python != Path(sys.executable):
        environment |= {
            "PATH": f"{python.parent}:{environment.get('PATH', os.defpath)}",
            "VIRTUAL_ENV": str(python.parent.parent),
            **matplotlib_variables(python),
        }
    return environment | {"USER": USER_NAME, "LOGNAME": USER_NAME, "PYTHONDONTWRITEBYTECODE": "1"}


def _is_alive(record: ProcessRecord) -> bool:
    return record.pid != 0 and record.identity != "" and process_identity(record.pid) == record.identity


def _write_record(directory: Path, record: ProcessRecord) -> None:
    scratch = directory / f"{_RECORD}.new"
    scratch.write_text(json.dumps(asdict(record)))
    scratch.replace(directory / _RECORD)


def _read_record(directory: Path) -> ProcessRecord | None:
    try:
        content = json.loads((directory / _RECORD).read_text())
        # A record of another version may have more in it.
        return ProcessRecord(**{field.name: content[field.name] for field in fields(ProcessRecord)})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _remove_directory(directory: Path) -> None:
    """Remove a tree whose owner may have taken our permissions on its directories away. Raises OSError."""
    for parent, names, _ in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            with suppress(OSError):
                if not path.is_symlink():
                    path.chmod(0o700)
    shutil.rmtree(directory)
