"""What a kernel in a container leaves when it dies, and what the next one finds of it: memory, objects, obstacles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio
from e2e_rig import LIMITS, Rig
from engine_fixtures import FORK_SERVERS
from sandbox_code import CALLS, said

from sessions.model import ANONYMOUS, RunStatus, SessionId, SessionState

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("settled")]

MOST_BYTES = LIMITS.memory_bytes * 3 // 5
"""A container does not have twice this."""

ENDS = {
    "exit": "os._exit(3)",
    "signal": "os.kill(os.getpid(), 11)",
    "exit of the shell": "get_ipython().ask_exit()",
    "out of memory": "hog = [bytearray(16 << 20) for _ in range(1000)]",
    "restart": "",
}

SHARED_MEMORY = (
    CALLS
    + """
libc.shmat.restype = ctypes.c_void_p
def shared_memory(size):
    segment = libc.shmget(0, size, 0o1600)
    address = libc.shmat(segment, None, 0)
    ctypes.memset(address, 1, size)
    libc.shmdt(ctypes.c_void_p(address))
    return segment
"""
)

OBJECTS = (
    SHARED_MEMORY
    + """
import stat
given_away = shared_memory(4096)
record = ctypes.create_string_buffer(512)
libc.shmctl(given_away, 2, record)
struct.pack_into('I', record, 4, 12345)
changed = [call(libc.shmctl, given_away, 1, record), libc.semget(0, 4, 0o1600), libc.msgget(0, 0o1000)]
changed.append(libc.mq_open(b'/queue', os.O_CREAT | os.O_RDWR, 0, None))
from multiprocessing import shared_memory as posix
named = posix.SharedMemory('named', create=True, size=4096)
os.chdir('/dev/shm')
os.symlink('/work', 'link')
os.mkfifo('pipe')
for depth in range(300):
    os.mkdir('d' * 200)
    write('file')
    os.chdir('d' * 200)
for depth in range(300):
    os.chdir('..')
    os.chmod('d' * 200, 0)
os.chmod('/dev/shm', 0)
os.chdir('/work')
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        hidden = os.memfd_create('hidden')
        while True:
            os.write(hidden, bytes(1 << 16))
            time.sleep(0.1)
write('/work/kept')
write('/tmp/kept')
print(json.dumps(changed), flush=True)
os._exit(0)
"""
)

LEFT = (
    CALLS
    + """
print(json.dumps({
    **{kind: len(open('/proc/sysvipc/' + kind).readlines()) - 1 for kind in ('shm', 'sem', 'msg')},
    'mqueue': call(libc.mq_open, b'/queue', os.O_RDONLY),
    'files': os.listdir('/dev/shm'),
    'processes': sum(name.isdigit() for name in os.listdir('/proc')),
    'kept': [os.path.exists(path) for path in ('/work/kept', '/tmp/kept')],
}))
"""
)

OBSTACLES = {
    "a full directory of sockets": "write('/run/ipc/x', 'x' * (1 << 20))",
    "no inodes for sockets": "for n in range(64): write(f'/run/ipc/{n}')",
    "directories in the place of files": "for n in range(2, 9): os.makedirs(f'/run/ipc/k{n}.json/{n}')",
    "directories in the place of sockets": "for n in range(1, 6): os.unlink(s := f'/run/ipc/k1-{n}'), os.makedirs(s)",
    "a locked directory of sockets": "os.chmod('/run/ipc', 0)",
    "a locked working directory": "os.chmod('/work', 0)",
    "a locked home": "os.chmod('/tmp/home', 0); os.chmod('/tmp', 0)",
}


@pytest_asyncio.fixture(loop_scope="module")
async def session_id(rig: Rig) -> AsyncIterator[SessionId]:
    session_id = SessionId(f"leftovers-{uuid4().hex}")
    yield session_id
    await rig.service.delete_session(ANONYMOUS, session_id)


async def end_kernel(rig: Rig, session_id: SessionId, code: str, how: str) -> None:
    """Run the code, and have its kernel end in this way."""
    result = await rig.run(f"{code}\n{ENDS[how]}", session_id=session_id)
    if how == "restart":
        assert result.status is RunStatus.OK, result.error
        await rig.service.restart_session(ANONYMOUS, session_id)


@pytest.mark.parametrize("how", ENDS)
async def test_shared_memory_goes_with_the_kernel(rig: Rig, session_id: SessionId, how: str) -> None:
    await end_kernel(rig, session_id, f"{SHARED_MEMORY}\nshared_memory({MOST_BYTES})", how)
    result = await rig.run(f"print(len(bytearray({MOST_BYTES})))", session_id=session_id)
    assert (result.status, result.output) == (RunStatus.OK, f"{MOST_BYTES}\n"), result.error


async def test_nothing_but_files_outlives_the_kernel(rig: Rig, session_id: SessionId) -> None:
    ended = await rig.run(OBJECTS, session_id=session_id)
    assert ended.status is RunStatus.KERNEL_DIED, ended.error
    made = said(ended)
    assert made[0] == "succeeded"
    assert -1 not in made
    left = said(await rig.run(LEFT, session_id=session_id))
    assert left.pop("processes") == 2 + FORK_SERVERS  # beside the supervisor and the kernel
    assert left == {"shm": 0, "sem": 0, "msg": 0, "mqueue": "ENOENT", "files": [], "kept": [True, True]}


@pytest.mark.parametrize("obstacle", OBSTACLES)
async def test_a_kernel_cannot_keep_the_next_one_from_its_files(rig: Rig, session_id: SessionId, obstacle: str) -> None:
    code = f"{CALLS}\nwrite('/work/kept', 'kept')\nattempt(lambda: exec({OBSTACLES[obstacle]!r}))\nos._exit(3)"
    assert (await rig.run(code, session_id=session_id)).status is RunStatus.KERNEL_DIED
    result = await rig.run("print(open('kept').read())", session_id=session_id)
    assert (result.status, result.output) == (RunStatus.OK, "kept\n"), result.error


async def test_a_daemon_that_computes_between_runs_is_counted_for_the_session(rig: Rig, session_id: SessionId) -> None:
    burn = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        end = time.process_time() + 2
        while time.process_time() < end:
            pass
    os._exit(0)
"""
    run = await rig.run(CALLS + burn, session_id=session_id)
    view = rig.service.get_session(ANONYMOUS, session_id)
    assert (view.state, run.status) == (SessionState.IDLE, RunStatus.OK)
    async with asyncio.timeout(60):
        while rig.service.get_session(ANONYMOUS, session_id).session.usage.cpu_ms < 1500:
            await asyncio.sleep(0.1)


async def test_what_the_home_directory_configures_is_in_effect_for_the_next_kernel(
    rig: Rig, session_id: SessionId
) -> None:
    code = """
import site
startup, packages = '/tmp/home/.ipython/profile_default/startup', site.getusersitepackages()
os.makedirs(startup, exist_ok=True)
os.makedirs(packages, exist_ok=True)
write(startup + '/first.py', 'started = 1')
write(packages + '/first.pth', 'import builtins; builtins.imported = 2')
"""
    await end_kernel(rig, session_id, CALLS + code, "restart")
    result = await rig.run("print(started, imported)", session_id=session_id)
    assert (result.status, result.output) == (RunStatus.OK, "1 2\n"), result.error
