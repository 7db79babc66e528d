"""The supervisor's look at a kernel that was forked from outside: whatever differs is named. No trait is trusted."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel_image import parity, seccomp
from kernel_image.parity import Likeness
from kernel_image.protocol import SETTINGS_VARIABLE

ENVIRONMENT = {"HOME": "/nowhere", "LANG": "C.UTF-8"}
ALLOW_EVERYTHING = b"\x06\0\0\0\0\0\xff\x7f"
"""One instruction: BPF_RET with SECCOMP_RET_ALLOW."""

_CLONE_NEWUTS = 0x04000000
_PR_SET_NO_NEW_PRIVS = 38

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make this difference")

Start = Callable[..., int]


def own() -> Likeness:
    return parity.likeness("self", environment=ENVIRONMENT)


def differences(pid: int, likeness: Likeness | None = None) -> list[str]:
    adjustment = int(Path("/proc/self/oom_score_adj").read_text())
    return parity.differences(pid, likeness or own(), oom_score_adjustment=adjustment)


@pytest.fixture(autouse=True)
def lasting_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's mounts stay as they are; this machine's come and go with the containers of other tests."""
    text_of = parity._text
    monkeypatch.setattr(parity, "_text", lambda path: "mounts" if path.name == "mountinfo" else text_of(path))


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it has not come true in half a minute")


def sleeps(pid: int) -> bool:
    """Whether it has been executed and has got to its end: before, its files and environment are not all there."""
    status = Path("/proc", str(pid), "status").read_text()
    return status.startswith("Name:\tsleep\n") and "State:\tS" in status


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that is like this one, but for what `change` does in it and the `fields` of its Popen."""
    started: list[subprocess.Popen[bytes]] = []

    def start(change: Callable[[], object] | None = None, *command: str, **fields: object) -> int:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        keywords = {"env": ENVIRONMENT, "preexec_fn": change, "start_new_session": True, **streams, **fields}
        started.append(subprocess.Popen(command or ("sleep", "60"), **keywords))  # type: ignore[call-overload]
        if not command:
            until(lambda: sleeps(started[-1].pid))
        return started[-1].pid

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_process_of_ones_own_does_not_differ(start: Start) -> None:
    assert differences(start()) == []


@pytest.mark.parametrize("name", [*own().traits])
def test_each_trait_counts(start: Start, name: str) -> None:
    likeness = own()
    other = likeness._replace(traits={**likeness.traits, name: "another"})
    assert differences(start(), other) == [name]


def no_new_privileges() -> None:
    seccomp.checked(seccomp.libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def filter_calls() -> None:
    no_new_privileges()
    seccomp.install(ALLOW_EVERYTHING, allows_speculation=True)


def lower_a_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))


def offer_to_oom_killer() -> None:
    Path("/proc/self/oom_score_adj").write_text("1000")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (no_new_privileges, ["status NoNewPrivs"]),
        (lower_a_limit, ["limits"]),
        (lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]), ["blocked signals"]),
        (offer_to_oom_killer, ["oom_score_adj"]),
        (lambda: os.close(0), ["files"]),
        pytest.param(lambda: os.setgroups([4711]), ["status Groups"], marks=as_root),
        pytest.param(lambda: os.setresgid(4711, 4711, 4711), ["status Gid"], marks=as_root),
        pytest.param(lambda: seccomp.libc.unshare(_CLONE_NEWUTS), ["namespace uts"], marks=as_root),
    ],
)
def test_what_a_process_has_changed_is_named(start: Start, change: Callable[[], object], found: list[str]) -> None:
    assert differences(start(change)) == found


def test_a_seccomp_filter_more_is_named(start: Start) -> None:
    found = set(differences(start(filter_calls)))
    assert found - {"status NoNewPrivs", "status Seccomp"} == {"status Seccomp_filters"}


@as_root
def test_another_user_with_fewer_capabilities_is_named(start: Start) -> None:
    found = differences(start(lambda: os.setresuid(4711, 4711, 4711)))
    assert {"status Uid", "status CapEff", "status CapPrm"} <= set(found)


@pytest.mark.parametrize("environment", [{}, {**ENVIRONMENT, "MORE": "1"}, {**ENVIRONMENT, "HOME": "/root"}])
def test_another_environment_is_named(start: Start, environment: dict[str, str]) -> None:
    assert differences(start(env=environment)) == ["environment"]


@pytest.mark.parametrize(("value", "found"), [("xxxx", []), ("", []), ("{}", ["environment"])])
def test_settings_count_unless_they_were_overwritten(start: Start, value: str, found: list[str]) -> None:
    assert differences(start(env={**ENVIRONMENT, SETTINGS_VARIABLE: value})) == found


def test_an_open_file_more_is_named(start: Start, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        assert differences(start(stdout=file)) == ["files"]
        assert differences(start(pass_fds=[file.fileno()])) == ["files"]
    null = os.open(os.devnull, os.O_RDWR)
    assert differences(start(pass_fds=[null])) == ["files"]
    os.close(null)


def test_a_thread_more_is_named(start: Start, tmp_path: Path) -> None:
    code = (
        "import os, sys, threading, time\n"
        "threading.Thread(target=time.sleep, args=[60], daemon=True).start()\n"
        "os.mkdir(sys.argv[1])\n"  # and no file, which would be there before it is closed
        "time.sleep(60)"
    )
    pid = start(None, sys.executable, "-I", "-c", code, str(tmp_path / "ready"))
    until((tmp_path / "ready").exists)
    assert differences(pid) == ["threads"]


def test_anothers_child_is_named(start: Start, tmp_path: Path) -> None:
    # A shell would put PWD in the environment.
    code = (
        "import os, subprocess, sys\n"
        "null = subprocess.DEVNULL\n"
        "child = subprocess.Popen(['/bin/sleep', '60'], stdin=null, stdout=null, stderr=null)\n"
        "with open(sys.argv[1], 'w') as file:\n"
        "    file.write(f'{child.pid}\\n')\n"
        "child.wait()"
    )
    start(None, sys.executable, "-I", "-c", code, str(tmp_path / "pid"))
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
    pid = int((tmp_path / "pid").read_text())
    until(lambda: sleeps(pid))
    assert differences(pid) == ["parent"]


def test_a_process_that_has_ended_differs() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    (found,) = differences(process.pid)
    assert found.startswith("what could not be read: ")


def test_a_process_that_may_not_be_looked_at_differs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise PermissionError(13, "Permission denied")

    pid, likeness = start(), own()
    monkeypatch.setattr(parity, "_text", refuse)
    assert differences(pid, likeness) == ["what could not be read: PermissionError: [Errno 13] Permission denied"]


def test_a_zombie_differs() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert differences(process.pid)
    process.wait()


def test_the_namespaces_that_a_process_has_are_in_its_likeness() -> None:
    traits = own().traits
    assert traits["namespace mnt"] == os.readlink("/proc/self/ns/mnt")  # noqa: PTH115
    assert traits["root"] == (Path("/").stat().st_dev, Path("/").stat().st_ino)
    assert all(value != "" for name, value in traits.items() if name.startswith("status Cap"))
