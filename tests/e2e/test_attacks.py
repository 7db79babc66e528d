"""Attacks on the walls, from inside a real container: PID 1, other processes, the gateway's socket, the host's kernel.

Each asserts what the attacker was told, and `settled` that the gateway and the next run are none the worse for it.
"""

from __future__ import annotations

import asyncio

import pytest
from e2e_rig import Rig, open_descriptors
from engine_fixtures import FORK_SERVERS
from sandbox_code import CALLS, SOCKET, said

from sessions.model import RunStatus

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("settled")]

DENIED = {"EPERM", "EACCES"}

TRACE = (
    CALLS
    + """
class Vector(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]

def read_memory(pid):
    buffer = ctypes.create_string_buffer(8)
    here, there = Vector(ctypes.addressof(buffer), 8), Vector(id(None), 8)
    return call(libc.process_vm_readv, pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)

def attach(pid):
    outcome = call(libc.ptrace, 16, pid, 0, 0)
    if outcome == 'succeeded':
        os.waitpid(pid, 0)
        libc.ptrace(17, pid, 0, 0)
    return outcome

def steal_descriptor(pid):
    pidfd = os.pidfd_open(pid)
    try:
        return call(libc.syscall, 438, pidfd, 0, 0)
    finally:
        os.close(pidfd)

def assault(pid):
    proc = f'/proc/{pid}/'
    return {
        'attach': attach(pid),
        'process_vm_readv': read_memory(pid),
        'pidfd_getfd': steal_descriptor(pid),
        **{name: attempt(read, proc + name) for name in ('environ', 'maps', 'auxv', 'syscall')},
        'mem': attempt(lambda: os.close(os.open(proc + 'mem', os.O_RDWR))),
        **{name: attempt(os.readlink, proc + name) for name in ('cwd', 'root', 'exe', 'ns/net')},
        **{name: attempt(os.listdir, proc + name) for name in ('fd', 'map_files')},
    }

def children_of_pid_1():
    for name in os.listdir('/proc'):
        if name.isdigit() and open(f'/proc/{name}/stat').read().rpartition(')')[2].split()[1] == '1':
            yield int(name)

fork_servers = [pid for pid in children_of_pid_1() if pid != os.getpid()]
victim = os.fork()
if victim == 0:
    time.sleep(60)
    os._exit(0)
answer = {'supervisor': assault(1), 'victim': assault(victim), 'fork servers': [assault(one) for one in fork_servers]}
os.kill(victim, 9)
os.waitpid(victim, 0)
print(json.dumps(answer))
"""
)


async def test_no_signal_from_inside_ends_or_stops_the_supervisor(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
sent = [attempt(os.kill, 1, number) for number in range(1, 65) if number not in (32, 33)]
victim = subprocess.Popen(['sleep', '60'])
os.kill(victim.pid, signal.SIGTERM)
time.sleep(0.5)
print(json.dumps([sorted(set(sent)), victim.wait()]))
"""
    )
    # It is no lack of permission that saves PID 1, and the same signal ends another process.
    assert said(result) == [["succeeded"], -15]
    assert result.status is RunStatus.OK


async def test_neither_supervisor_nor_fork_server_can_be_traced_or_read(rig: Rig) -> None:
    answer = said(await rig.run(TRACE))
    assert set(answer["supervisor"].values()) <= DENIED, answer
    assert len(answer["fork servers"]) == FORK_SERVERS
    assert all(set(outcomes.values()) <= DENIED for outcomes in answer["fork servers"]), answer
    # The control: a process that did not forbid it is laid open by the very same calls, seccomp's own denials apart.
    opened = {name for name, outcome in answer["victim"].items() if outcome == "succeeded"}
    assert opened >= {"attach", "environ", "mem", "maps", "cwd", "root", "exe", "fd"}, answer


async def test_the_credential_is_nowhere_that_user_code_can_look(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + r"""
import re
secret = re.compile(rb'"credentia[l]": "[A-Za-z0-9_-]{20,}"')
def leaks(data): return bool(secret.search(data))
found, looked_at = [], 0
for directory in ('/proc', '/run', '/tmp', '/work', '/etc', '/opt/cellblock/kernel_image'):
    for top, below, names in os.walk(directory):
        if top == '/proc':
            below[:] = [name for name in below if name.isdigit()]
        elif top.startswith('/proc/'):
            below[:] = []
            names = [name for name in names if name in ('environ', 'cmdline', 'comm', 'auxv')]
        for name in names:
            path = os.path.join(top, name)
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                continue
            with open(descriptor, 'rb') as file:
                looked_at += 1
                if leaks(file.read(1 << 22)):
                    found.append(path)
memory = open('/proc/self/mem', 'rb', 0)
planted = bytes([34]) + b'credential": "' + b'x' * 43 + b'"'
own = 0
for line in open('/proc/self/maps'):
    start, end = (int(edge, 16) for edge in line.split()[0].split('-'))
    if line.split()[1].startswith('rw'):
        try:
            memory.seek(start)
            own += len({match for match in secret.findall(memory.read(end - start)) if b'xxxxx' not in match})
            looked_at += 1
        except (OSError, ValueError, OverflowError):
            pass
named = sorted(name for name in os.environ if 'CELLBLOCK' in name or 'JPY' in name)
print(json.dumps([found, own, looked_at > 50, leaks(planted), named]))
"""
    )
    assert said(result) == [[], 0, True, True, []]


async def test_nothing_can_be_planted_beside_the_gateways_socket(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
def bind(path):
    socket.socket(socket.AF_UNIX).bind(path)
def plant(top):
    return {
        'file': attempt(write, top + '/f'),
        'symlink': attempt(os.symlink, '/etc/passwd', top + '/l'),
        'socket': attempt(bind, top + '/b'),
        'directory': attempt(os.mkdir, top + '/d'),
        'pipe': attempt(os.mkfifo, top + '/p'),
        'hard link': attempt(os.link, top + '/s', top + '/h'),
        'rename': attempt(os.rename, top + '/s', top + '/r'),
        'remove': attempt(os.unlink, top + '/' + ('r' if os.path.exists(top + '/r') else 's')),
        'chmod': attempt(os.chmod, top, 0o777),
        'times': attempt(os.utime, top),
    }
write('/work/s')
print(json.dumps([plant('/run/gateway'), plant('/work')]))
"""
    )
    planted, control = said(result)
    assert set(planted.values()) <= {"EROFS", "EPERM", "EACCES"}, planted
    assert set(control.values()) == {"succeeded"}, control


async def test_the_kernels_privileged_doors_are_shut(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
S = libc.syscall
tried = {
    'mount': call(libc.mount, b'none', b'/work', b'tmpfs', 0, None),
    'bind mount': call(libc.mount, b'/', b'/work', None, 4096, None),
    'remount': call(libc.mount, None, b'/', None, 32 | 4096, None),
    'umount': call(libc.umount2, b'/run/gateway', 2),
    'pivot_root': call(S, 155, b'/work', b'/work'),
    'chroot': attempt(os.chroot, '/work'),
    **{f'unshare {flag:x}': call(libc.unshare, flag)
       for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000, 0x08000000, 0x04000000, 0x02000000)},
    'setns': call(libc.setns, os.open('/proc/self/ns/net', os.O_RDONLY), 0),
    'keyctl': call(S, 250, 0, -3, 0), 'add_key': call(S, 248, b'user', b'k', b'v', 1, -3),
    'bpf': call(S, 321, 0, 0, 0), 'perf_event_open': call(S, 298, 0, 0, -1, -1, 0),
    'init_module': call(S, 175, 0, 0, b''), 'kexec_load': call(S, 246, 0, 0, 0, 0), 'reboot': call(S, 169, 0, 0, 0, 0),
    'swapon': call(S, 167, b'/work/x', 0), 'settimeofday': call(S, 164, (ctypes.c_long * 2)(0, 0), None),
    'sethostname': call(libc.sethostname, b'x', 1), 'iopl': call(S, 172, 3), 'acct': call(S, 163, b'/work/a'),
    'open_by_handle_at': call(S, 304, -100, 0, 0), 'quotactl': call(S, 179, 0, 0, 0, 0),
    'fsopen': call(S, 430, b'tmpfs', 0), 'userfaultfd': call(S, 323, 0),
    'syslog': call(S, 103, 3, 0, 0),
    'setuid': attempt(os.setuid, 0), 'setgid': attempt(os.setgid, 0), 'setgroups': attempt(os.setgroups, [0]),
    'device': attempt(os.mknod, '/work/mem', 0o20600, os.makedev(1, 1)),
    'packet socket': attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW),
    'raw socket': attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1),
    'lower oom score': attempt(write, '/proc/self/oom_score_adj', '-1000'),
    'nice': attempt(os.nice, -20),
    **{path: attempt(write, path) for path in (
        '/proc/sysrq-trigger', '/proc/sys/kernel/core_pattern', '/proc/sys/kernel/hostname', '/proc/sys/vm/drop_caches',
        '/sys/kernel/uevent_helper', '/sys/fs/cgroup/memory/memory.limit_in_bytes', '/sys/fs/cgroup/memory.max',
        '/sys/fs/cgroup/cgroup.procs', '/proc/self/uid_map', '/etc/passwd', '/x',
        '/opt/cellblock/kernel_image/relay.py')},
    **{path: attempt(read, path) for path in ('/dev/mem', '/dev/kmem', '/dev/kmsg', '/dev/port', '/dev/sda', '/dev/vda',
        '/var/run/docker.sock', '/etc/shadow', '/dev/kvm', '/dev/fuse')},
}
status = dict(line.rstrip().split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)
harmless = {path: open(path, 'rb').read(1) == b'' if os.path.exists(path) and os.access(path, os.R_OK) else True
            for path in ('/proc/kcore', '/proc/keys', '/proc/timer_list', '/proc/sched_debug')}
setuid_files = [os.path.join(top, name) for top, _, names in os.walk('/usr') for name in names
                if os.lstat(os.path.join(top, name)).st_mode & 0o6000 and not os.path.islink(os.path.join(top, name))]
rights = {name: status[name] for name in ('CapEff', 'CapPrm', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp')}
print(json.dumps([tried, rights, harmless, setuid_files, os.getuid() > 60000, os.getgroups() in ([], [os.getgid()])]))
"""
    )
    tried, rights, masked, setuid_files, own_uid, no_groups = said(result)
    through = {
        name: outcome for name, outcome in tried.items() if outcome in ("succeeded", "EINVAL", "EFAULT", "EBADF")
    }
    assert through == {}
    none = "0" * 16
    assert rights == {"CapEff": none, "CapPrm": none, "CapBnd": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp": "2"}
    assert set(masked.values()) == {True}, masked
    assert (setuid_files, own_uid, no_groups) == ([], True, True)


async def test_there_is_no_network_but_the_sandboxes_own_loopback(rig: Rig) -> None:
    result = await rig.run(
        CALLS
        + """
def connect(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as s:
        s.settimeout(2)
        s.connect(address)
        if kind == socket.SOCK_DGRAM:
            s.send(b'x')
def vsock(cid):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect((cid, 1024))
listening = socket.create_server(('127.0.0.1', 0))
try:
    names = socket.getaddrinfo('example.com', 80)
except socket.gaierror:
    names = []
print(json.dumps([{
    'metadata': attempt(connect, socket.AF_INET, ('169.254.169.254', 80)),
    'metadata 6': attempt(connect, socket.AF_INET6, ('fd00:ec2::254', 80)),
    'bridge': attempt(connect, socket.AF_INET, ('172.17.0.1', 80)),
    'internet': attempt(connect, socket.AF_INET, ('1.1.1.1', 443)),
    'dns': attempt(connect, socket.AF_INET, ('8.8.8.8', 53), socket.SOCK_DGRAM),
    'docker dns': attempt(connect, socket.AF_INET, ('127.0.0.11', 53)),
    'vsock host': attempt(vsock, 2),
    'vsock hypervisor': attempt(vsock, 0),
}, names, [name for _, name in socket.if_nameindex()], attempt(connect, socket.AF_INET, listening.getsockname())]))
"""
    )
    outside, names, interfaces, loopback = said(result)
    assert "succeeded" not in outside.values(), outside
    assert {outside[name] for name in ("metadata", "bridge", "internet", "dns")} <= {"ENETUNREACH", "EPERM"}, outside
    assert (names, loopback) == ([], "succeeded")
    assert set(interfaces) <= {"lo"} | {name for name in interfaces if name.startswith(("tunl", "sit", "ip6", "gre"))}


async def test_a_second_supervisor_is_turned_away_whatever_it_says(rig: Rig) -> None:
    result = await rig.run(
        SOCKET
        + """
mine = 'k'
deep = '[' * 60000
def other_path():
    with dial() as connection:
        connection.sendall(HANDSHAKE.replace(b'/supervisor', b'/'))
        return connection.recv(12).decode()
print(json.dumps({
    'no credential': say(hello(kernel_id=mine)),
    'wrong credential': say(hello(kernel_id=mine, credential='x' * 43)),
    'no string': say(hello(kernel_id=mine, credential=[None])),
    'surrogate': say(hello(kernel_id=mine, credential='\\ud800')),
    'before the hello': say(frame(2, struct.pack('<Q', 1) + bytes(64))),
    'no hello': say(frame(1, b'{"op": "done", "seq": 1, "msg_id": "x"}')),
    'nonsense': say(frame(1, b'\\xff\\xfe not json')),
    'deep': say(frame(1, deep.encode())),
    'oversize': say(struct.pack('!BBQ', 0x82, 0xff, 1 << 40) + bytes(4)),
    'reserved opcode': say(frame(5, b'x')),
    'wrong path': other_path(),
}))
"""
    )
    answers = said(result)
    assert answers.pop("wrong path") == "HTTP/1.1 404"
    assert {name: answer for name, answer in answers.items() if answer.endswith("|open")} == {}
    for name in ("no credential", "wrong credential", "no string", "surrogate"):
        assert "unknown credential" in answers[name]
    assert not any("welcome" in answer for answer in answers.values())
    assert result.status is RunStatus.OK


async def test_guessing_the_credential_again_and_again_ends_the_sandbox(rig: Rig) -> None:
    result = await rig.run(
        SOCKET
        + """
for _ in range(40):
    attempt(say, hello(kernel_id='k', credential='guess'))
time.sleep(30)
"""
    )
    assert result.status is RunStatus.KERNEL_DIED
    assert "wrong credential" in (result.error or "")


async def test_only_the_credential_stands_between_user_code_and_its_own_kernels_link(rig: Rig) -> None:
    """The control of the tests above: with the credential the very same hello is heard, and ends this one kernel."""
    kernel = rig.service._kernel_pool._kernels[rig.service._kernel_pool._pools["python3"].warm[0]]
    stolen = {"kernel_id": kernel.kernel_id, "credential": kernel.credential}
    result = await rig.run(SOCKET + "say(hello(**stolen))\ntime.sleep(30)", variables={"stolen": stolen})
    assert (result.status, result.error) == (RunStatus.KERNEL_DIED, "The sandbox ended before the code did.")


async def test_a_thousand_connections_do_not_use_up_the_gateways_descriptors(rig: Rig) -> None:
    before = open_descriptors()
    attack = asyncio.ensure_future(
        rig.run(
            SOCKET
            + """
held = []
def hold(first):
    connection = dial()
    connection.sendall(first)
    held.append(connection)
firsts = (HANDSHAKE, HANDSHAKE[:40], b'', b'\\x00' * 64)
print(json.dumps([attempt(hold, firsts[number % 4]) for number in range(900)].count('succeeded')))
time.sleep(2)
"""
        )
    )
    most = before
    others = 0
    while not attack.done():
        most = max(most, open_descriptors())
        if not others:
            assert (await rig.run("print(1)")).output == "1\n"
            others += 1
        await asyncio.sleep(0.01)
    result = await attack
    assert result.status is RunStatus.OK
    assert said(result) > 0
    assert most - before < 100


async def test_slow_and_noisy_connections_leave_the_gateway_to_others(rig: Rig) -> None:
    """Pings, pipelined requests and connecting in endless loops: another run starts later and is done earlier."""
    attack = asyncio.ensure_future(
        rig.run(
            SOCKET
            + """
ends = time.monotonic() + 7
def noise(flood, first):
    while time.monotonic() < ends:
        try:
            with dial() as connection:
                connection.sendall(first)
                while time.monotonic() < ends:
                    connection.sendall(flood)
        except OSError:
            pass
for flood, first in (
    (frame(9, b'x') * 5000, HANDSHAKE),
    (frame(1, b'{}') * 5000, HANDSHAKE),
    (b'GET /x HTTP/1.1\\r\\nHost: g\\r\\n\\r\\n' * 1000, b''),
    (b'x' * 65536, b''),
):
    threading.Thread(target=noise, args=(flood, first), daemon=True).start()
while time.monotonic() < ends:
    attempt(lambda: dial().close())
""",
            timeout_s=30,
        )
    )
    await asyncio.sleep(1)
    assert (await rig.run("print(1)")).output == "1\n"
    await rig.ask_bystander()
    assert not attack.done()
    assert (await attack).status in (RunStatus.OK, RunStatus.KERNEL_DIED)
