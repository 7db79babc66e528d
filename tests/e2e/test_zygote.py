"""Kernels that are forked into their containers from outside: they are no more than what the containers have.

Looked at from the host, since code in there is what should not have to be believed. The zygote is killed and stopped
here, has a step left out, and is made to differ: runs go on whatever happens to it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from docker.api.client import APIClient
from e2e_rig import LIMITS, children_of, credential_of, is_from_zygote, text_of
from sandbox_code import said

from gateway.host.clock import SystemClock
from gateway.supervisors import SupervisorSwitchboard
from kernel_image import parity
from kernel_image.hardening import OOM_SCORE_ADJUSTMENT
from kernel_image.protocol import SETTINGS_VARIABLE
from sessions.environment import Environment
from sessions.languages import PYTHON_KERNEL
from sessions.model import ANONYMOUS, GatewayId, KernelId, Result, RunRequest, RunStatus, SessionId
from sessions.ports import LaunchSpec
from sessions.provisioners.docker import zygote as docker_zygote
from sessions.provisioners.docker.container import GATEWAY_LABEL
from sessions.provisioners.docker.provisioner import DockerProvisioner
from sessions.provisioners.docker.zygote_container import ZYGOTE_LABEL, zygote_config
from sessions.service import Service
from sessions.settings import EngineSettings, PoolSettings, SessionLimits
from sessions.testing.memory_store import MemoryStore
from sessions.wiring import Wiring

pytestmark = [
    pytest.mark.docker,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root sees all of a container from outside"),
]

PATIENCE_S = 60.0
PRELOAD = ("numpy",)


@dataclass
class Site:
    """A gateway without its HTTP face and its database."""

    service: Service
    provisioner: DockerProvisioner
    docker: APIClient
    gateway_id: GatewayId
    size: int

    async def run(self, code: str, session_id: SessionId | None = None) -> Result:
        return await self.service.run(RunRequest(ANONYMOUS, code, "python", {}, 60.0, session_id))

    async def prints(self, text: str) -> None:
        result = await self.run(f"print({text!r})")
        assert (result.status, result.output) == (RunStatus.OK, f"{text}\n"), result.error

    async def full(self) -> list[int]:
        """Wait until no sandbox starts or ends; returns the first processes of all, as the host counts."""
        async with asyncio.timeout(PATIENCE_S):
            while self.service._kernel_pool.warm() < self.size or len(self.sandboxes()) != self.size:
                await asyncio.sleep(0.05)
        return [self.pid_of(container) for container in self.sandboxes()]

    def sandboxes(self) -> list[str]:
        filters = {"label": f"{GATEWAY_LABEL}={self.gateway_id}"}
        return [entry["Id"] for entry in self.docker.containers(filters=filters)]

    def zygotes(self) -> list[str]:
        filters = {"label": f"{ZYGOTE_LABEL}={self.gateway_id}"}
        return [entry["Id"] for entry in self.docker.containers(all=True, filters=filters)]

    def pid_of(self, container_id: str) -> int:
        """Its first process, as the host counts."""
        return int(self.docker.inspect_container(container_id)["State"]["Pid"])

    async def replaced(self, container_id: str) -> None:
        """Wait until another zygote has come, and kernels are forked by it."""
        zygote = self.provisioner._zygote
        assert zygote is not None
        async with asyncio.timeout(PATIENCE_S):
            while not zygote.is_up or container_id in (zygotes := self.zygotes()) or len(zygotes) != 1:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def open_site(docker: APIClient, kernel_image: str, gateway_id: GatewayId, size: int = 1) -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="cb-") as directory:
        settings = EngineSettings(name="docker", kernel_image=kernel_image, zygote="auto")
        provisioner = DockerProvisioner(gateway_id, settings, zygote_dir=Path(directory, "z"))
        environment = Environment(
            store=MemoryStore(),
            provisioner=provisioner,
            switchboard=SupervisorSwitchboard(Path(directory, "s")),
            gateway_id=gateway_id,
            limits=LIMITS,
            preload=PRELOAD,
            credential_of=credential_of,
            clock=SystemClock(),
        )
        wiring = Wiring.build(environment, PoolSettings(size=size, max=6), {"python": PYTHON_KERNEL})
        service = Service(wiring, SessionLimits())
        site = Site(service, provisioner, docker, gateway_id, size)
        await service.start()
        try:
            await site.full()
            yield site
        finally:
            await service.drain(5)
            await service.close()
            for kernel_id in await provisioner.list():
                await provisioner.kill(kernel_id)
            await provisioner.close()
        assert site.zygotes() == []


@pytest.fixture(scope="module")
def short_pauses() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker_zygote, "_LOOK_PAUSE_S", 0.2)
        patch.setattr(docker_zygote, "_ANSWER_TIMEOUT_S", 2.0)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(docker_client: APIClient, kernel_image: str, short_pauses: None) -> AsyncIterator[Site]:
    """The module's gateway. An earlier one, which was killed, has left a zygote."""
    del short_pauses
    gateway_id = GatewayId(uuid.uuid4().hex)
    left = docker_client.create_container(
        kernel_image, entrypoint=["sleep", "600"], labels={ZYGOTE_LABEL: gateway_id}, network_disabled=True
    )["Id"]
    docker_client.start(left)
    async with open_site(docker_client, kernel_image, gateway_id, size=2) as site:
        (zygote,) = site.zygotes()
        assert zygote != left
        yield site


# --- looking from the host --------------------------------------------------------------------------------------------

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
STATUS = (
    *("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    *("NoNewPrivs", "Seccomp", "Seccomp_filters", "Umask", "Cpus_allowed", "Mems_allowed"),
)


def look(pid: int) -> Mapping[str, object]:
    """What a process is, by name. This is no code of the product's: it might be blind where that is."""
    proc = Path("/proc", str(pid))
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
    root = (proc / "root").stat()
    variables = (proc / "environ").read_bytes().decode().split("\0")
    return {
        **{f"ns/{name}": (proc / "ns" / name).readlink() for name in NAMESPACES},
        **{name: status[name] for name in STATUS},
        **{name: (proc / name).read_text() for name in ("cgroup", "limits", "mountinfo")},
        "root": (root.st_dev, root.st_ino),
        # The supervisor's settings were overwritten when it had read them, and the zygote's likewise.
        "environment": {one for one in variables if not one.startswith(f"{SETTINGS_VARIABLE}=xxx")} - {""},
    }


def differences(one: int, other: int) -> set[str]:
    seen, wanted = look(one), look(other)
    return {name for name in seen if seen[name] != wanted[name]}


def open_files_of(pid: int) -> set[str]:
    """The files, and of what is none the kind."""
    return {str(link.readlink()).split(":")[0] for link in Path("/proc", str(pid), "fd").iterdir()}


def child_of(init: int) -> int:
    """The kernel of a container that has got it from the zygote."""
    assert is_from_zygote(init)
    (kernel,) = children_of(init)
    return kernel


async def test_a_kernel_is_what_its_supervisor_is(site: Site) -> None:
    for init in await site.full():
        kernel = child_of(init)
        assert differences(kernel, init) == set()
        seen = look(kernel)
        assert {seen[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
        assert text_of(kernel, "oom_score_adj") == f"{OOM_SCORE_ADJUSTMENT}\n"
        assert open_files_of(kernel) <= {"/dev/null", "/dev/urandom", "socket", "anon_inode", "pipe", "/run/ipc/ring"}


async def test_the_look_from_the_host_sees_differences(site: Site) -> None:
    """The control: another sandbox's kernel, the zygote and this process are all told apart."""
    first, second = await site.full()
    own_to_each = {
        "cgroup",
        "ns/ipc",
        "ns/mnt",
        "ns/net",
        "ns/pid",
        "ns/uts",
        "mountinfo",
        "root",
        "Uid",
        "Gid",
        "Groups",
    }
    assert differences(child_of(second), first) - {"ns/cgroup"} == own_to_each
    (zygote,) = site.zygotes()
    more = {"CapPrm", "CapEff", "CapBnd", "Seccomp", "Seccomp_filters"}
    assert differences(site.pid_of(zygote), first) >= own_to_each | more
    assert differences(os.getpid(), first) >= own_to_each | more | {"environment", "NoNewPrivs"}


# --- a step left out --------------------------------------------------------------------------------------------------

OMITTING = """
import dataclasses, os, pathlib, resource
from kernel_image import entering, hardening, kernel_program, zygote
fork_into = zygote.Zygote._fork_into
def omitting(self, request, connection):
    exec(pathlib.Path('/run/zygote/omitted').read_text(), globals())
    fork_into(self, request, connection)
zygote.Zygote._fork_into = omitting
zygote.main()
"""

OMITTED = {
    "nothing": ("", set()),
    "user": ("os.setresuid = lambda *_: None", {"status Uid", "status CapPrm", "status CapEff"}),
    "group": ("os.setresgid = lambda *_: None", {"status Gid"}),
    "groups": ("os.setgroups = lambda _: os.initgroups('root', 4711)", {"status Groups"}),
    "capability bounds": ("entering._PR_CAPBSET_DROP = 23", {"status CapBnd"}),
    "seccomp filter": (
        "entering.seccomp.install = lambda *_, **__: None",
        {"status Seccomp", "status Seccomp_filters"},
    ),
    "files": ("entering._close_files = lambda keep: None", {"files"}),
    "score": ("hardening.offer_to_oom_killer = lambda: None", {"oom_score_adj"}),
    "limits": (
        "resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99)); resource.setrlimit = lambda *_: None",
        {"limits"},
    ),
    "cgroups": (
        "look = entering.look_at; entering.look_at = lambda *_: dataclasses.replace(look(*_), cgroups=())",
        {"cgroup"},
    ),
    **{
        f"{name} namespace": (f"del entering._NAMESPACES[{name!r}]", {f"namespace {name}"})
        for name in ("ipc", "net", "uts")
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def omitting(site: Site, kernel_image: str) -> AsyncIterator[tuple[docker_zygote.DockerZygote, Path]]:
    del kernel_image
    zygote = site.provisioner._zygote
    assert zygote is not None
    with tempfile.TemporaryDirectory(prefix="cb-") as name:
        directory = Path(name)
        other = docker_zygote.DockerZygote(site.provisioner._engine, site.provisioner._settings, directory)

        def config(spec: LaunchSpec, *arguments: Any, **keywords: Any) -> dict[str, Any]:
            whole = zygote_config(spec, *arguments, **keywords)
            if spec.gateway_id != own.gateway_id:
                return whole
            return {**whole, "Entrypoint": [*whole["Entrypoint"][:2], "-c", OMITTING]}

        own = LaunchSpec(KernelId("none"), GatewayId(f"{site.gateway_id} omitting"), "", directory, LIMITS)
        with pytest.MonkeyPatch.context() as patch:
            # For as long as the zygote is there: one that is slow to answer is replaced.
            patch.setattr(docker_zygote, "zygote_config", config)
            assert site.provisioner._facts is not None
            assert await other.ready(own, site.provisioner._facts)
            yield other, directory / "omitted"
            await other.close()


@pytest.mark.parametrize("what", OMITTED)
async def test_a_step_left_out_is_seen(
    site: Site, omitting: tuple[docker_zygote.DockerZygote, Path], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The supervisor's own comparison, made from the host."""
    zygote, omitted = omitting
    code, found = OMITTED[what]
    omitted.write_text(code)
    init, _ = await site.full()
    child_of(init)
    container = site.sandboxes()[0]
    inside = (await zygote.fork(container, init)).pid
    (forked,) = [pid for pid in children_of(init) if pid_inside(pid) == inside]
    try:
        monkeypatch.setattr(os, "getpid", lambda: init)
        own = parity.likeness(str(init))
        seen = parity.differences(forked, own, oom_score_adjustment=OOM_SCORE_ADJUSTMENT)
    finally:
        monkeypatch.undo()
        os.kill(forked, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while psutil.pid_exists(forked):
                await asyncio.sleep(0.005)
    assert set(seen) == found


def pid_inside(pid: int) -> int:
    """What it is called in its own namespace."""
    (line,) = [line for line in text_of(pid, "status").splitlines() if line.startswith("NSpid:")]
    return int(line.split()[-1])


# --- looking from inside ----------------------------------------------------------------------------------------------

INSIDE = """
import json, os, socket
def there(*paths):
    return [path for path in paths if os.path.lexists(path)]
print(json.dumps({
    'interfaces': [name for _, name in socket.if_nameindex()],
    'paths': there('/run/zygote', '/run/cgroups', '/var/run/docker.sock'),
    'mounts': [line.split()[4] for line in open('/proc/self/mountinfo')],
    'unix': [line.split()[7] for line in open('/proc/net/unix').read().splitlines()[1:] if len(line.split()) > 7],
    'processes': sorted(int(name) for name in os.listdir('/proc') if name.isdigit()),
    'environment': sorted(os.environ),
    'settings': [one for one in open('/proc/self/environ').read().split('\\0') if 'socket' in one],
    'cwd': os.getcwd(),
    'parent': os.getppid(),
}))
"""


async def test_nothing_of_the_zygotes_is_in_the_sandbox(site: Site) -> None:
    seen = said(await site.run(INSIDE))
    assert seen["interfaces"] == ["lo"]
    assert seen["paths"] == []
    assert not [mount for mount in seen["mounts"] if "zygote" in mount or "cgroups" in mount]
    assert not [name for name in seen["unix"] if "zygote" in name]
    assert len(seen["processes"]) == 2  # the supervisor and the kernel
    assert seen["settings"] == []
    assert SETTINGS_VARIABLE not in seen["environment"]
    assert (seen["cwd"], seen["parent"]) == ("/work", 1)


PARSED = """
import json, sys
cached = getattr(sys.modules.get('parso.cache'), 'parser_cache', {})
print(json.dumps([path.name for modules in cached.values() for path in modules if path]))
"""


async def test_what_completions_parse_is_soon_there_before_the_first(site: Site) -> None:
    async with asyncio.timeout(2 * PATIENCE_S):
        while not {"builtins.pyi", "os.py"} <= {*said(await site.run(PARSED))}:
            await asyncio.sleep(0.5)


RANDOM = """
import hashlib, io, json, multiprocessing, os, random, secrets, tempfile, uuid
import numpy, re
from matplotlib.figure import Figure
drawn = {
    'random': random.random(),
    'numpy': numpy.random.random(),
    'numpy generator': numpy.random.default_rng().random(),
    'uuid1': str(uuid.uuid1()),
    'uuid1 node': uuid.getnode(),
    'uuid4': str(uuid.uuid4()),
    'temporary name': next(tempfile._get_candidate_names()),
    'temporary file': tempfile.mktemp(),
    'secrets': secrets.token_hex(),
    'urandom': os.urandom(8).hex(),
    'key': multiprocessing.current_process().authkey.hex(),
    'system random': random.SystemRandom().random(),
}
figure, file = Figure(), io.StringIO()
figure.subplots().plot([1, 2])
figure.savefig(file, format='svg')
drawn['svg'] = re.search('id="(p[0-9a-f]{10})"', file.getvalue())[1]
print(json.dumps(drawn))
"""


async def test_kernels_of_one_zygote_agree_on_no_random_number(site: Site) -> None:
    drawn = [said(await site.run(RANDOM)) for _ in range(3)]
    for name in drawn[0]:
        assert len({str(one[name]) for one in drawn}) == 3, name


# --- what befalls it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_runs_go_on_without_the_zygote_and_another_comes(site: Site, number: signal.Signals) -> None:
    (zygote,) = site.zygotes()
    os.kill(site.pid_of(zygote), number)
    await site.prints("one")
    await site.prints("two")
    await site.replaced(zygote)
    async with asyncio.timeout(PATIENCE_S):  # some may have forked their own kernels meanwhile
        while not all(map(is_from_zygote, await site.full())):
            await asyncio.gather(*(site.prints("another") for _ in range(site.size)))


PID = "import json, os\nprint(json.dumps(os.getpid()))"


@pytest.mark.parametrize("end", ["import os\nos._exit(3)", "import os\nos.kill(os.getpid(), 9)"])
async def test_a_session_whose_kernel_dies_gets_the_next_from_the_zygote(site: Site, end: str) -> None:
    inits = await site.full()
    session = SessionId(uuid.uuid4().hex)
    first = said(await site.run(PID, session))
    assert (await site.run(end, session)).status is RunStatus.KERNEL_DIED
    second = said(await site.run(PID, session))
    assert second != first
    (kernel,) = [pid for init in inits for pid in children_of(init) if pid_inside(pid) == second]
    assert "kernel_image.zygote" in text_of(kernel, "cmdline")
    await site.service.delete_session(ANONYMOUS, session)


async def test_a_difference_ends_its_use_and_is_said(
    docker_client: APIClient, kernel_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(*arguments: Any, **keywords: Any) -> dict[str, Any]:
        whole = zygote_config(*arguments, **keywords)
        return {**whole, "Env": [*whole["Env"], "MORE=1"]}

    monkeypatch.setattr(docker_zygote, "zygote_config", config)
    monkeypatch.setattr(docker_zygote, "_LOOK_PAUSE_S", 0.2)
    async with open_site(docker_client, kernel_image, GatewayId(uuid.uuid4().hex)) as site:
        assert site.provisioner.warnings() == (
            "Sandboxes start more slowly than they could, since there is no zygote: it differs in environment.",
        )
        await site.prints("one")
        await site.prints("two")
        (init,) = await site.full()
        children = [text_of(child, "cmdline") for child in children_of(init)]
        assert len(children) == 2  # the fork server and the kernel
        assert not [line for line in children if "kernel_image.zygote" in line]
        async with asyncio.timeout(PATIENCE_S):
            while site.zygotes():
                await asyncio.sleep(0.05)
