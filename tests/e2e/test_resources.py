"""Runs that use up what a sandbox has: memory, processes, files, disk, time, output. Each ends with one true status."""

from __future__ import annotations

import asyncio

import pytest
from e2e_rig import LIMITS, Rig
from sandbox_code import CALLS, said

from sessions.model import RunStatus

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("settled")]


async def test_the_limits_that_sandboxes_say_they_have_are_those_of_the_configuration(rig: Rig) -> None:
    assert (rig.service.readiness().ready, rig.service.readiness().warnings) == (True, ())
    (kernel, *_) = rig.service._kernel_pool._kernels.values()
    assert set(kernel.limits_seen) == {"memory_bytes", "pids", "cpu_us"}
    assert kernel.limits_seen["memory_bytes"] == LIMITS.memory_bytes


async def test_memory_in_the_kernel_is_oom_and_what_was_said_is_kept(rig: Rig) -> None:
    result = await rig.run("print('before', flush=True)\nhog = [bytearray(16 << 20) for _ in range(1000)]")
    assert (result.status, result.output) == (RunStatus.OOM, "before\n")
    assert "512 MiB" in (result.error or "")


async def test_memory_in_a_child_is_told_and_the_run_goes_on(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + "print(subprocess.run([sys.executable, '-c', 'x = [bytearray(16 << 20) for _ in range(1000)]']).returncode)"
    )
    assert (result.status, result.output) == (RunStatus.OK, "-9\n")
    assert "memory limit" in result.stderr


async def test_a_killed_kernel_is_not_taken_for_one_out_of_memory(rig: Rig) -> None:
    result = await rig.run("import os\nprint('bye')\nos.kill(os.getpid(), 9)")
    assert (result.status, result.output) == (RunStatus.KERNEL_DIED, "bye\n")
    assert "SIGKILL" in (result.error or "")


async def test_a_fork_bomb_stays_in_its_sandbox(rig: Rig) -> None:
    attack = asyncio.ensure_future(
        rig.run(
            CALLS
            + """
def bomb():
    while True:
        try:
            os.fork()
        except OSError:
            pass
print('lit', flush=True)
bomb()
""",
            timeout_s=6,
        )
    )
    await asyncio.sleep(1)
    assert (await rig.run("print(1)")).output == "1\n"
    assert not attack.done()
    result = await attack
    assert result.status in (RunStatus.TIMEOUT, RunStatus.OOM), result.error
    assert "lit" in result.output


async def test_killing_everything_but_pid_1_is_a_death_of_the_kernel(rig: Rig) -> None:
    result = await rig.run(CALLS + "print('bye', flush=True)\nlibc.kill(-1, 9)\ntime.sleep(1)")
    # kill(-1) spares its caller and PID 1: the fork server is gone, the run goes on.
    assert (result.status, result.output) == (RunStatus.OK, "bye\n")
    result = await rig.run(
        CALLS + "print('bye', flush=True)\nsubprocess.run(['sh', '-c', 'kill -9 -1'])\ntime.sleep(5)"
    )
    assert (result.status, result.output) == (RunStatus.KERNEL_DIED, "bye\n")


async def test_full_disks_are_errors_of_the_code(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
def fill(path):
    with open(path, 'wb', 0) as file:
        while True:
            file.write(bytes(1 << 20))
def litter(directory):
    os.mkdir(directory)
    for number in range(1 << 20):
        open(f'{directory}/{number}', 'w').close()
answer = []
for directory in ('/work', '/tmp', '/dev/shm'):
    answer.append(attempt(fill, directory + '/full'))
    os.unlink(directory + '/full')
for directory in ('/work/many', '/tmp/many', '/dev/shm/many'):
    answer.append(attempt(litter, directory))
answer.append(attempt(fill, '/run/ipc/full'))
print(json.dumps(answer))
""",
        timeout_s=30,
    )
    answer = said(result)
    assert set(answer) <= {"ENOSPC", "EFBIG"}, answer
    assert result.status is RunStatus.OK
    assert result.truncated
    assert 0 < len(result.files) <= LIMITS.file_count
    assert "were dropped" in result.stderr


async def test_threads_and_descriptors_run_out_for_the_code_alone(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
held, threads = [], 0
try:
    while True:
        held.append(os.open('/dev/null', os.O_RDONLY))
except OSError as error:
    print(errno.errorcode[error.errno])
for descriptor in held:
    os.close(descriptor)
over = threading.Event()
try:
    while True:
        threading.Thread(target=over.wait, daemon=True).start()
        threads += 1
except RuntimeError:
    print(threads < 256)
over.set()
"""
    )
    assert (result.status, result.output) == (RunStatus.OK, "EMFILE\nTrue\n"), result.error


async def test_ignored_signals_are_answered_by_a_kill(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print('deaf', flush=True)
while True:
    pass
""",
        timeout_s=1,
    )
    assert (result.status, result.output) == (RunStatus.TIMEOUT, "deaf\n")


async def test_a_stopped_kernel_is_killed(rig: Rig) -> None:
    result = await rig.run("import os\nprint('x', flush=True)\nos.kill(os.getpid(), 19)", timeout_s=1)
    assert (result.status, result.output) == (RunStatus.TIMEOUT, "x\n")


async def test_a_kernel_may_delete_all_that_it_can(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
import shutil
write('/work/made', 'x')
for directory in ('/work', '/tmp', '/run/ipc', '/dev/shm'):
    shutil.rmtree(directory, ignore_errors=True)
os.chmod('/work', 0)
os.chmod('/run/ipc', 0)
print('done')
"""
    )
    assert (result.status, result.output, result.files) == (RunStatus.OK, "done\n", {})


async def test_two_hundred_times_the_output_is_cut_and_marked(rig: Rig) -> None:
    result = await rig.run(f"for _ in range(200):\n    print('x' * {LIMITS.output_bytes})", timeout_s=60)
    assert result.status is RunStatus.OK
    assert result.truncated
    assert 0 < len(result.output) <= LIMITS.output_bytes
    assert "output was cut" in result.stderr


async def test_endless_output_leaves_the_gateway_to_others(rig: Rig) -> None:
    attack = asyncio.ensure_future(rig.run("while True: print('y' * 10_000, flush=True)", timeout_s=4))
    await asyncio.sleep(0.5)
    assert (await rig.run("print(1)")).output == "1\n"
    assert not attack.done()
    result = await attack
    assert (result.status, result.truncated) == (RunStatus.TIMEOUT, True)


async def test_ten_thousand_figures_are_the_first_few_and_a_mark(rig: Rig) -> None:
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    result = await rig.run(
        f"from IPython.display import display\nfor _ in range(10_000): display({{'image/png': {png!r}}}, raw=True)",
        timeout_s=120,
    )
    assert (result.status, len(result.images), result.truncated) == (RunStatus.OK, LIMITS.image_count, True)
    assert "too many" in result.stderr


async def test_images_that_are_none_are_dropped_and_said(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
import zlib
from IPython.display import display
def png(width, height):
    def chunk(kind, data):
        return struct.pack('!I', len(data)) + kind + data + struct.pack('!I', zlib.crc32(kind + data))
    head = struct.pack('!II5B', width, height, 8, 0, 0, 0, 0)
    lines = zlib.compress(bytes(60 * 61))
    return b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', head) + chunk(b'IDAT', lines) + chunk(b'IEND', b'')
import base64
open('bomb.png', 'wb').write(png(60_000, 60_000))
open('fine.png', 'wb').write(png(60, 60))
open('fake.png', 'w').write('<script>alert(1)</script>')
open('empty.png', 'w')
display({'image/png': base64.b64encode(png(60_000, 60_000)).decode()}, raw=True)
display({'image/png': 'not base64!', 'text/plain': 'instead'}, raw=True)
display({'image/png': base64.b64encode(b'plain').decode()}, raw=True)
display({'image/png': 'A' * 20_000_000}, raw=True)
"""
    )
    assert result.status is RunStatus.OK
    assert set(result.images) == {"fine.png"}
    assert {"text/plain": "instead"} in result.results
    assert set(result.files) == {"fake.png", "empty.png"}
    assert result.truncated
    assert "it has too many pixels" in result.stderr


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("raise ValueError('no repr')", RunStatus.OK),
        ("return repr(self)", RunStatus.OK),
        ("return 7", RunStatus.OK),
        ("\n  while True: pass", RunStatus.TIMEOUT),
        ("return '\\ud800\\x00' * 3", RunStatus.OK),
        ("return 'x' * 100_000_000", RunStatus.OK),
    ],
)
async def test_a_hostile_repr_hurts_nobody_else(rig: Rig, body: str, status: RunStatus) -> None:
    timeout_s = 3 if status is RunStatus.TIMEOUT else 60
    result = await rig.run(f"class A:\n def __repr__(self): {body}\nA()", timeout_s=timeout_s)
    # IPython reports an exception in __repr__ as the cell's output, and goes on.
    assert result.status in (status, RunStatus.ERROR)
    assert (result.status is RunStatus.TIMEOUT) == (status is RunStatus.TIMEOUT)


async def test_text_that_databases_reject_comes_through(rig: Rig) -> None:
    result = await rig.run(
        "import sys\nprint('a\\x00b\\ud800c\\u202e')\nprint('\\x00', file=sys.stderr)\n"
        "open(b'n\\xff\\n\\x1b[31m', 'w').write('x')\nfloat('nan')\n"
        "from IPython.display import display\n"
        "display({'application/json': {'x': [float('inf'), '\\ud800\\x00']}}, raw=True)\n1e999"
    )
    assert result.status is RunStatus.OK
    assert "a\x00b" in result.output
    assert result.output.endswith("c\u202e\n")
    assert result.stderr == "\x00\n"
    assert result.results[-1] == {"text/plain": "inf"}
    assert len(result.files) == 1


async def test_only_regular_files_of_the_runs_own_become_artifacts(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
write('real.txt', 'mine')
os.symlink('/proc/1/environ', 'environ.png')
os.symlink('/etc/passwd', 'passwd.png')
os.symlink('/etc', 'etc')
os.mkfifo('pipe.png')
socket.socket(socket.AF_UNIX).bind('socket.png')
os.link('real.txt', 'hard.txt')
os.mkdir('..data')
write('..data/x.txt', 'in')
write('...png', 'x')
write('a\\nb.txt', 'newline')
write('n' * 255, 'long')
with open('sparse.bin', 'wb') as file:
    file.truncate(60 << 20)
with open('huge.bin', 'wb') as file:
    file.write(bytes(11 << 20))
deep = os.getcwd()
for _ in range(40):
    os.mkdir('d' * 50)
    os.chdir('d' * 50)
write('bottom.txt', 'x')
"""
    )
    assert result.status is RunStatus.OK
    assert set(result.files) == {"real.txt", "hard.txt", "..data/x.txt", "...png", "a\nb.txt", "n" * 255}
    assert result.images == {}
    assert result.truncated
    ref = result.files["real.txt"]
    assert (await rig.service.artifact(ref.id)).data == b"mine"


async def test_a_directory_swapped_for_a_link_during_the_scan_lets_nothing_out(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
os.makedirs('a/b')
for number in range(300):
    write(f'a/b/{number}.txt', 'mine')
    write(f'a/b/passwd', 'mine')
swapper = '''
import os, time
while True:
    os.rename('a/b', 'a/c'); os.symlink('/etc', 'a/b')
    open('a/c/now', 'w').write(str(time.time()))
    os.unlink('a/b'); os.rename('a/c', 'a/b')
'''
subprocess.Popen([sys.executable, '-c', swapper])
time.sleep(0.3)
"""
    )
    assert result.status is RunStatus.OK
    for ref in result.files.values():
        data = (await rig.service.artifact(ref.id)).data
        assert b"root:" not in data, ref.name
