"""What code inside a kernel container can and cannot do, each with a control: the same probe in a plain container."""

from __future__ import annotations

import secrets
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from docker.api.client import APIClient

from sessions.model import GatewayId, KernelId
from sessions.ports import LaunchSpec
from sessions.provisioners.docker.container import WIDE_UIDS, container_config, container_name
from sessions.provisioners.docker.engine import DockerEngine
from sessions.provisioners.docker.readback import missing_limits, read_back, shortfalls
from sessions.settings import EngineSettings, Limits

pytestmark = pytest.mark.docker

LIMITS = Limits(disk_bytes=8 << 20, inodes=500, memory_bytes=256 << 20, pids=40, nofile=128, cpus=0.5)

# Every probe prints one line: what happened.
PRELUDE = """
import ctypes, errno, os, resource, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def outcome(action):
    try:
        return action() or "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)
def start_many(count):
    children = []
    try:
        while len(children) < count:
            children.append(subprocess.Popen(["sleep", "60"]))
    finally:
        for child in children:
            child.kill()
            child.wait()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
"""


@dataclass(frozen=True)
class Probe:
    """`hardened` is what a kernel container says; the plain one must say anything else."""

    code: str
    hardened: str


PROBES = {
    "root file system is read-only": Probe("open('/opt/cellblock/x', 'w')", "EROFS"),
    "work directory has a size": Probe("open('/work/x', 'wb').write(bytes(9 << 20))", "EFBIG"),
    "work directory is full when it is full": Probe(
        "[open(f'/work/{i}', 'wb', 0).write(bytes(1 << 20)) for i in range(9)] and sum(map(os.path.getsize, "
        "[f'/work/{i}' for i in range(9)])) == 9 << 20 and 'all written' or 'cut short'",
        "ENOSPC",
    ),
    "work directory has a number of files": Probe(
        "[open(f'/work/{i}', 'w').close() for i in range(600)] and 'ok'", "ENOSPC"
    ),
    "shared memory has a number of files": Probe(
        "[open(f'/dev/shm/{i}', 'w').close() for i in range(5000)] and 'ok'", "ENOSPC"
    ),
    "work directory is ours alone": Probe(
        "oct(os.stat('/work').st_mode) + str(os.stat('/work').st_uid > 60000)", "0o40700True"
    ),
    "programs may be run from the work directory": Probe(
        "(open('/work/x', 'w').write('#!/bin/sh\\necho ran'), os.chmod('/work/x', 0o700)) and "
        "subprocess.check_output(['/work/x'], text=True).strip() + str(os.getuid() > 60000)",
        "ranTrue",
    ),
    "gateway directory cannot be written to": Probe("open('/run/gateway/x', 'w')", "EROFS"),
    "user is nobody": Probe(
        "os.getuid() in range(1900000000, 2147000000) and os.getuid() == os.getgid() and 'nobody'", "nobody"
    ),
    "capabilities are gone": Probe("status['CapBnd'].strip()", "0" * 16),
    "no new privileges": Probe("status['NoNewPrivs'].strip()", "1"),
    "no network but loopback": Probe("','.join(name for _, name in socket.if_nameindex())", "lo"),
    "metadata address cannot be reached": Probe(
        "socket.create_connection(('169.254.169.254', 80), timeout=0.2)", "ENETUNREACH"
    ),
    "raw sockets are refused": Probe("socket.socket(socket.AF_PACKET, socket.SOCK_RAW) and 'raw'", "EPERM"),
    "mount is refused": Probe("call('mount', b'none', b'/mnt', b'tmpfs', 0, None)", "EPERM"),
    "new user namespaces are refused": Probe("call('unshare', 0x10000000)", "EPERM"),
    "kernel settings cannot be written": Probe("open('/proc/sys/kernel/hostname', 'w')", "EROFS"),
    "kernel log cannot be read": Probe("call('klogctl', 10, None, 0) or 'read'", "EPERM"),
    "core dumps are off": Probe("str(resource.getrlimit(resource.RLIMIT_CORE))", "(0, 0)"),
    "open files are limited": Probe("[open('/dev/null') for _ in range(200)] and 'open'", "EMFILE"),
    "host's cgroup names are hidden": Probe(
        "'docker' in open('/proc/self/cgroup').read() and 'shown' or 'hidden'", "hidden"
    ),
    "has a small share of the processors": Probe(
        # On cgroup v1 there are 1024 shares where nobody asks for another number, on v2 a weight of 100.
        "next(int(open(path).read()) < usual and 'small' or 'usual' for path, usual in "
        "(('/sys/fs/cgroup/cpu.weight', 100), ('/sys/fs/cgroup/cpu/cpu.shares', 1024)) if os.path.exists(path))",
        "small",
    ),
    "is the first to be killed when the host runs out of memory": Probe(
        "open('/proc/self/oom_score_adj').read().strip()", "500"
    ),
    "setuid files do not exist": Probe(
        "subprocess.run(['find', '/', '-xdev', '!', '-type', 'l', '-perm', '/6000'], capture_output=True, text=True)"
        ".stdout.strip() or 'none'",
        "none",
    ),
}

# No control for these: Docker or the image see to them in any container; or they would take a privileged container, or
# packets to an address that is not ours, which no test should need.
WITHOUT_CONTROL = {
    "setuid files do not exist",
    "host's cgroup names are hidden",
    "mount is refused",
    "kernel settings cannot be written",
    "kernel log cannot be read",
    "metadata address cannot be reached",
}

Run = Callable[[str], str]


@pytest.fixture(scope="module")
def hardened(docker_client: APIClient, kernel_image: str) -> Iterator[Run]:
    with tempfile.TemporaryDirectory(prefix="cb-") as socket_dir:
        Path(socket_dir).chmod(0o777)
        config, name = kernel_container(kernel_image, Path(socket_dir))
        yield from running(docker_client, config, name)


def kernel_container(kernel_image: str, socket_dir: Path) -> tuple[dict[str, Any], str]:
    """What the engine is asked for, and the container's name."""
    spec = LaunchSpec(KernelId(str(uuid.uuid4())), GatewayId("test"), "secret", socket_dir, LIMITS)
    uid = secrets.choice(WIDE_UIDS)
    return container_config(spec, EngineSettings(kernel_image=kernel_image), uid=uid), container_name(uid)


def test_the_sockets_of_a_gateway_may_be_in_a_volume(docker_client: APIClient, kernel_image: str) -> None:
    """Docker insists on how mounts propagate out of its own directory."""
    volume = docker_client.create_volume()
    try:
        config, name = kernel_container(kernel_image, Path(volume["Mountpoint"]))
        container_id = docker_client.create_container_from_config(config, name)["Id"]
        try:
            docker_client.start(container_id)
        finally:
            docker_client.remove_container(container_id, force=True)
    finally:
        docker_client.remove_volume(volume["Name"], force=True)


@pytest.fixture(scope="module")
def plain(docker_client: APIClient, kernel_image: str) -> Iterator[Run]:
    """What Docker gives to root when nobody asks for protection."""
    config = {
        "Image": kernel_image,
        "User": "0:0",
        "HostConfig": {
            "AutoRemove": True,
            "SecurityOpt": ["seccomp=unconfined"],
            "NetworkMode": "bridge",
            "Tmpfs": {"/run/gateway": "rw"},
            "Ulimits": [{"Name": "core", "Soft": 1, "Hard": 1}],
        },
    }
    yield from running(docker_client, config, f"cellblock-test-{uuid.uuid4()}")


def running(client: APIClient, config: dict[str, Any], name: str) -> Iterator[Run]:
    container = client.create_container_from_config({**config, "Entrypoint": ["sleep", "600"]}, name)["Id"]
    client.start(container)

    def run(expression: str) -> str:
        cleaning = "import glob, os\n[os.remove(p) for d in ('/work', '/dev/shm') for p in glob.glob(d + '/[0-9x]*')]"
        for code in (f"{PRELUDE}\nprint(outcome(lambda: {expression}))", cleaning):
            call = client.exec_create(container, ["python", "-c", code])
            output = client.exec_start(call["Id"])
            if code is not cleaning:
                answer: str = output.decode().strip()
        return answer

    try:
        yield run
    finally:
        client.remove_container(container, force=True)


@pytest.mark.parametrize("name", PROBES)
def test_hardened_container(hardened: Run, name: str) -> None:
    assert hardened(PROBES[name].code) == PROBES[name].hardened


@pytest.mark.parametrize("name", sorted(PROBES.keys() - WITHOUT_CONTROL))
def test_control_without_hardening(plain: Run, name: str) -> None:
    assert plain(PROBES[name].code) != PROBES[name].hardened


def test_a_fork_bomb_stops_at_the_limit_on_processes(hardened: Run) -> None:
    assert hardened("start_many(60)") == "EAGAIN"
    assert hardened("start_many(10)") == "done"


async def test_what_is_asked_for_is_what_a_container_gets(kernel_image: str) -> None:
    engine = DockerEngine(threads=1)
    try:
        assert await read_back(engine, EngineSettings(kernel_image=kernel_image), LIMITS) == ()
    finally:
        await engine.close()


def test_every_limit_that_is_missing_is_named() -> None:
    report = {
        "memory": ["max"],
        "memory and swap": None,
        "swap": ["max"],
        "pids": ["max"],
        "cpu": ["max", "100000"],
        "nofile": 1 << 20,
        "fsize": -1,
        "disk": 0,
        "inodes": 0,
        "capabilities": 0xA80425FB,
        "no_new_privs": "0",
        "root_writable": True,
        "interfaces": ["eth0", "lo"],
        "socket": False,
        "socket_dir_writable": True,
    }
    assert len(shortfalls(report, LIMITS, network="none")) == 14
    assert len(shortfalls(report, LIMITS, network="bridge")) == 13


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("memory_bytes", (None, -1, 0, LIMITS.memory_bytes + 1, 9223372036854771712, "max", True)),
        ("pids", (None, 0, LIMITS.pids + 1, [5])),
        ("cpu_us", (None, -1, 0, round(LIMITS.cpus * 100_000) + 1, 1.5)),
    ],
)
def test_a_limit_that_a_supervisor_does_not_see_is_named(name: str, values: tuple[object, ...]) -> None:
    seen = {"memory_bytes": LIMITS.memory_bytes, "pids": LIMITS.pids, "cpu_us": round(LIMITS.cpus * 100_000)}
    assert missing_limits(seen, LIMITS) == ()
    for value in values:
        assert len(missing_limits({**seen, name: value}, LIMITS)) == 1
    assert len(missing_limits({}, LIMITS)) == 3


def test_docker_stop_need_not_wait(docker_client: APIClient, kernel_image: str, short_dir: Path) -> None:
    config, name = kernel_container(kernel_image, short_dir)
    container = docker_client.create_container_from_config({**config, "Entrypoint": ["sleep", "600"]}, name)["Id"]
    docker_client.start(container)
    before_s = time.monotonic()
    docker_client.stop(container, timeout=30)
    assert time.monotonic() - before_s < 15


def test_docker_gets_no_proxy_variables(hardened: Run) -> None:
    assert hardened("','.join(name for name in os.environ if 'proxy' in name.lower()) or 'none'") == "none"


def test_localhost_has_an_address_without_a_network(hardened: Run) -> None:
    assert hardened("socket.gethostbyname('localhost')") == "127.0.0.1"
    assert hardened("socket.gethostbyname(socket.gethostname())").startswith("127.")
