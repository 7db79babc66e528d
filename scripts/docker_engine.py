#!/usr/bin/env python3
# ruff: noqa: S603, S607, T201 - a script: it talks to a person, and runs system programs by their names
"""Sees to it that a Docker engine answers, for `make serve` and the tests: `answers`, `start` or `stop`.

Standard library only. `start` installs and starts an engine where that is ours to do, which is as root on Debian or
Ubuntu; `stop` ends only what `start` has started. Exit status: 0 done, 1 failed, 3 there is none and none to be had.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

NONE_TO_BE_HAD = 3

DEFAULT_SOCKET = "/var/run/docker.sock"
OWN_RECORD = Path("/run/cellblock-dockerd.pid")
LOG = Path("/var/log/cellblock-dockerd.log")
PID_FILES = {Path("/var/run/docker.pid"): "dockerd", Path("/var/run/docker/containerd/containerd.pid"): "containerd"}
START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 30
PING_TIMEOUT_S = 5

NO_ACCESS = (
    "NO ACCESS TO THE DOCKER ENGINE: you may not open its socket. Add yourself to the group docker (sudo usermod -aG "
    "docker $USER, then log in again), or run this as root."
)
NO_ENGINE = (
    "NO DOCKER ENGINE: install Docker and start it (https://docs.docker.com/engine/install/). As root on Debian or "
    "Ubuntu, without DOCKER_HOST, this would have done it by itself."
)

# Kernels need no network of Docker's, so an engine without one will do where the machine has no netfilter.
WITHOUT_NETWORK = ["--iptables=false", "--ip6tables=false", "--bridge=none"]


def answers() -> bool:
    """Whether the engine that DOCKER_HOST names, or the local one, answers `GET /_ping`."""
    host = os.environ.get("DOCKER_HOST", "")
    try:
        if host.startswith("tcp://"):
            name, _, port = host.removeprefix("tcp://").rstrip("/").rpartition(":")
            connection = socket.create_connection((name, int(port)), PING_TIMEOUT_S)
        else:
            connection = socket.socket(socket.AF_UNIX)
        with connection:
            if connection.family == socket.AF_UNIX:
                connection.settimeout(PING_TIMEOUT_S)
                connection.connect(host.removeprefix("unix://") or DEFAULT_SOCKET)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except (OSError, ValueError):
        return False


def is_forbidden() -> bool:
    """Whether there is a local engine whose socket this user may not open."""
    path = os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or DEFAULT_SOCKET
    return os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK)  # noqa: PTH110 - a host may be no path


def start() -> int:  # noqa: PLR0911 - each outcome has its message
    """Have an engine answer, installing and starting one when needed; returns the exit status."""
    if answers():
        print("A Docker engine answers.")
        return 0
    if is_forbidden():
        print(NO_ACCESS, file=sys.stderr)
        return NONE_TO_BE_HAD
    if os.environ.get("DOCKER_HOST") or os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(NO_ENGINE, file=sys.stderr)
        return NONE_TO_BE_HAD
    if shutil.which("dockerd") is None and not install():
        return 1
    if Path("/run/systemd/system").is_dir():
        print("Starting the Docker engine with systemctl")
        subprocess.run(["systemctl", "start", "docker"], check=False)
        return 0 if wait_for_answer(None) else 1
    mount_cgroups()
    for options in ([], WITHOUT_NETWORK):
        if start_daemon(options):
            return 0
    return 1


def install() -> bool:
    """Install Debian's own Docker engine; returns whether that worked."""
    print("Installing the Docker engine (package docker.io)", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install_command = ["apt-get", "install", "-qy", "--no-install-recommends", "docker.io"]
    for command in (["apt-get", "update", "-q"], install_command):
        status = subprocess.run(command, check=False, env=environment, stdin=subprocess.DEVNULL).returncode
        if status != 0:
            print(f"The Docker engine was not installed: {' '.join(command)} ended with {status}.", file=sys.stderr)
            return False
    return True


def start_daemon(options: list[str]) -> bool:
    """Start dockerd in a session of its own and wait until it answers; when it does not, none is left."""
    remove_stale_pid_files()
    if (running := alive_pid(Path("/var/run/docker.pid"), "dockerd")) is not None:
        print(f"A Docker engine is starting already (process {running})")
        return wait_for_answer(None)
    print(f"Starting the Docker engine ({' '.join(['dockerd', *options])}), its log is {LOG}", flush=True)
    with LOG.open("ab") as log:
        process = subprocess.Popen(
            ["dockerd", *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    OWN_RECORD.write_text(f"{process.pid} {start_ticks(process.pid)}\n")
    if wait_for_answer(process):
        return True
    print("The Docker engine did not start; the end of its log:", file=sys.stderr)
    print("\n".join(LOG.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
    stop()
    return False


def wait_for_answer(process: subprocess.Popen[bytes] | None) -> bool:
    """Whether the engine answers in time, and before `process` ends."""
    began = time.monotonic()
    told = 0
    while (waited := time.monotonic() - began) < START_TIMEOUT_S:
        if answers():
            print(f"The Docker engine answers after {waited:.0f} s.")
            return True
        if process is not None and process.poll() is not None:
            return False
        if waited // 10 > told:
            told = int(waited // 10)
            print(f"Waiting for the Docker engine ({waited:.0f} s)", flush=True)
        time.sleep(0.2)
    return False


def stop() -> int:
    """End the daemon that `start` has started, if that is still running; returns the exit status."""
    try:
        pid, ticks = map(int, OWN_RECORD.read_text().split())
    except (OSError, ValueError):
        return 0
    if start_ticks(pid) == ticks:
        print(f"Stopping the Docker engine that was started here (process {pid})")
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            if wait_for_end(pid, ticks):
                break
    OWN_RECORD.unlink(missing_ok=True)
    return 0


def wait_for_end(pid: int, ticks: int) -> bool:
    """Whether this very process ends in time."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):  # it is a child only where start() has failed just now
            os.waitpid(pid, os.WNOHANG)
        if start_ticks(pid) != ticks:
            return True
        time.sleep(0.1)
    return False


def remove_stale_pid_files() -> None:
    """Remove what daemons that were killed left behind: dockerd refuses to start beside a pid file in use."""
    for path, name in PID_FILES.items():
        if path.exists() and alive_pid(path, name) is None:
            print(f"Removing {path}, left behind by a daemon that is gone")
            path.unlink()


def alive_pid(path: Path, name: str) -> int | None:
    """The process id in a pid file, when that process is alive and bears the daemon's name."""
    try:
        pid = int(path.read_text())
        return pid if Path(f"/proc/{pid}/comm").read_text().strip() == name and start_ticks(pid) else None
    except (OSError, ValueError):
        return None


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot, see proc(5); 0 when there is none, or only a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def mount_cgroups() -> None:
    """Docker wants cgroups mounted, which an init system would have done."""
    if not any(line.split()[2] in ("cgroup", "cgroup2") for line in Path("/proc/mounts").read_text().splitlines()):
        print("Mounting cgroups on /sys/fs/cgroup")
        subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=False)


def main() -> int:
    """Do what the command line says; returns the exit status."""
    match sys.argv[1:]:
        case ["answers"]:
            return 0 if answers() else 1
        case ["start"]:
            return start()
        case ["stop"]:
            return stop()
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
