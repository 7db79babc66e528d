"""What the zygote reads of a container before it enters it: cgroups, limits, status."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_image import entering, seccomp
from kernel_image.entering import CannotEnter, Container, look_at

ID = "4f2a" * 16
OTHER_ID = "77aa" * 16
ROOT = Path("/run/cgroups")

SUPERVISOR = b"/venv/bin/python\0-I\0-m\0kernel_image\0"
ZYGOTE = b"/venv/bin/python\0-I\0-m\0kernel_image.zygote\0"

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max core file size        0                    0                    bytes
Max open files            1024                 4096                 files
Max nice priority         0                    0
Max realtime timeout      unlimited            unlimited            us
"""

Look = Callable[[str], Container]


@pytest.fixture
def first_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def lay_out(
    tmp_path: Path, first_process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Container]]:
    """Say what /proc has of a container's first process, and look at it."""

    pidfds = []

    def open_pidfd(pid: int) -> int:
        pidfds.append(pidfd_open(pid))
        return pidfds[-1]

    def path(first: str, *others: str) -> Path:
        return Path(f"{tmp_path}{first}" if first.startswith("/proc") else first, *others)

    def look(
        cgroups: str, *, limits: str = LIMITS, user_namespace: str = "user:[1]", program: bytes = SUPERVISOR
    ) -> Container:
        proc, own = tmp_path / "proc" / str(first_process.pid), tmp_path / "proc" / "self"
        for directory, namespace, command in ((proc, user_namespace, program), (own, "user:[1]", ZYGOTE)):
            (directory / "ns").mkdir(parents=True)
            (directory / "ns" / "user").symlink_to(namespace)
            (directory / "cmdline").write_bytes(command)
        (proc / "cgroup").write_text(cgroups)
        (proc / "limits").write_text(limits)
        (proc / "status").write_text("Name:\tpython\nUid:\t1000\t1001\t1002\t1000\nGroups:\t5 6 \nNoNewPrivs:\t1\n")
        return look_at(ID, first_process.pid, ROOT)

    monkeypatch.setattr(entering, "Path", path)
    monkeypatch.setattr(seccomp, "filters_of", lambda *_: [])
    pidfd_open = os.pidfd_open
    monkeypatch.setattr(os, "pidfd_open", open_pidfd)
    yield look
    for pidfd in pidfds:
        os.close(pidfd)


def test_version_1_has_a_directory_for_each_set_of_controllers(lay_out: Look) -> None:
    lines = f"9:name=systemd:/docker/{ID}\n4:memory:/docker/{ID}\n3:cpuset:/\n2:cpu,cpuacct:/docker/{ID}\n0::/\n"
    assert lay_out(lines).cgroups == tuple(
        ROOT / names / "docker" / ID for names in ("systemd", "memory", "cpu,cpuacct")
    )


def test_version_2_has_one_directory(lay_out: Look) -> None:
    assert lay_out(f"0::/docker/{ID}\n").cgroups == (ROOT / "docker" / ID,)


def test_both_versions_at_once_have_the_second_beside_the_first(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    assert entering._cgroup_dir(tmp_path, "", f"/docker/{ID}") == tmp_path / "unified" / "docker" / ID
    assert entering._cgroup_dir(tmp_path, "pids", f"/docker/{ID}") == tmp_path / "pids" / "docker" / ID


def test_the_names_of_the_systemd_driver_are_known(lay_out: Look) -> None:
    assert lay_out(f"0::/system.slice/docker-{ID}.scope\n").cgroups == (ROOT / "system.slice" / f"docker-{ID}.scope",)


@pytest.mark.parametrize(
    ("cgroups", "why"),
    [
        (f"0::/docker/{OTHER_ID}\n", "not in the container's"),
        (f"0::/docker/{ID}/below\n", "not in the container's"),
        (f"0::/docker/{ID}0\n", "not in the container's"),
        (f"0::/docker/{ID[:12]}\n", "not in the container's"),
        (f"0::/system.slice/docker-{ID}.service\n", "not in the container's"),
        ("0::/\n", "not in the container's"),
        ("", "not in the container's"),
        (f"4:memory:/\n3:pids:/docker/{ID}\n", "no cgroup of its own"),
        (f"4:memory:/docker/{OTHER_ID}\n3:pids:/docker/{ID}\n", "no cgroup of its own"),
    ],
)
def test_a_process_in_another_cgroup_is_not_entered(lay_out: Look, cgroups: str, why: str) -> None:
    with pytest.raises(CannotEnter, match=why):
        lay_out(cgroups)


def test_a_container_in_a_user_namespace_is_not_entered(lay_out: Callable[..., Container]) -> None:
    with pytest.raises(CannotEnter, match="user namespace"):
        lay_out(f"0::/docker/{ID}\n", user_namespace="user:[2]")


def test_a_process_that_has_ended_is_not_entered(
    lay_out: Look, first_process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> list[bytes]:
        first_process.kill()
        os.waitid(os.P_PID, first_process.pid, os.WEXITED | os.WNOWAIT)
        return []

    monkeypatch.setattr(seccomp, "filters_of", end)
    with pytest.raises(CannotEnter, match="has ended"):
        lay_out(f"0::/docker/{ID}\n")


@pytest.mark.parametrize("program", [b"", b"runc\0init\0", b"/venv/bin/pytho"])
def test_a_container_that_is_still_the_engines_is_waited_for(
    lay_out: Callable[..., Container],
    first_process: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: bytes,
) -> None:
    seen = []
    proc = tmp_path / "proc" / str(first_process.pid)
    check_alive = entering._check_alive

    def wait(pidfd: int, wait_s: float = 0.0) -> None:
        check_alive(pidfd, wait_s)
        seen.append((proc / "cmdline").read_bytes())
        (proc / "cmdline").write_bytes(SUPERVISOR)
        (proc / "status").write_text("Seccomp_filters:\t1\n")

    monkeypatch.setattr(entering, "_check_alive", wait)
    assert lay_out(f"0::/docker/{ID}\n", program=program).status == {"Seccomp_filters": "1"}
    assert seen == [program, SUPERVISOR]


def test_a_container_of_another_program_is_not_entered(
    lay_out: Callable[..., Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entering, "_PROGRAM_TIMEOUT_S", 0.0)
    with pytest.raises(CannotEnter, match="no supervisor"):
        lay_out(f"0::/docker/{ID}\n", program=b"sleep\0600\0")


def test_no_process_is_an_error() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        look_at(ID, 0, ROOT)


def test_limits_are_read_soft_and_hard(lay_out: Look) -> None:
    container = lay_out(f"0::/docker/{ID}\n")
    assert container.limits == {
        resource.RLIMIT_CPU: (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (1024, 4096),
        resource.RLIMIT_NICE: (0, 0),
        resource.RLIMIT_RTTIME: (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
    }


def test_this_machines_limits_are_all_known() -> None:
    limits = entering._read_limits(Path("/proc/self/limits").read_text("ascii"))
    assert len(limits) == 16
    assert all(resource.getrlimit(number) == limit for number, limit in limits.items())


@pytest.mark.parametrize(
    "line", ["Max new things     1     1     things", "Max open files     many     4096     files"]
)
def test_a_limit_that_is_not_known_keeps_the_zygote_out(lay_out: Callable[..., Container], line: str) -> None:
    with pytest.raises(CannotEnter, match="not known"):
        lay_out(f"0::/docker/{ID}\n", limits=f"{LIMITS}{line}\n")


def test_status_is_read_by_name(lay_out: Look) -> None:
    status = lay_out(f"0::/docker/{ID}\n").status
    assert (entering._ids(status["Uid"]), status["Groups"], status["NoNewPrivs"]) == ((1000, 1001, 1002), "5 6", "1")
