"""The doctor's judgements, on what engines have been seen to say of themselves."""

from __future__ import annotations

import errno
import io
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NoReturn

import pytest
from docker.errors import DockerException
from rich.console import Console

from gateway import app
from gateway.auth import Token
from gateway.config.sections import AuthSection, Config, ServerSection
from gateway.console import show_findings
from gateway.doctor import machine, packages
from gateway.doctor.database import DatabaseFacts, database_findings
from gateway.doctor.engine import engine_findings, look_at_engine, zygote_finding
from gateway.doctor.examine import examine
from gateway.doctor.findings import Finding, Group, Level
from gateway.doctor.machine import clock_finding, disk_finding
from gateway.doctor.packages import package_findings
from gateway.doctor.server import look_at_data_dir, look_at_port, token_finding
from gateway.doctor.versions import is_older
from gateway.host.data_dir import DataDir
from sessions.errors import StoreUnavailable
from sessions.provisioners.docker.engine import EngineFacts, facts_from
from sessions.provisioners.docker.zygote import obstacle
from sessions.settings import BuildSettings, EngineSettings, Limits

GOOD = EngineFacts(
    version="28.2.2",
    api_version="1.50",
    runc_version="1.3.3",
    runc_build="v1.3.3-0-gd842d771",
    cgroup_version="2",
    runtimes=("io.containerd.runc.v2", "runc"),
    unapplied_limits=(),
    seccomp=True,
    maps_users=False,
    shares_host=True,
    cpus=2,
    memory_bytes=8 << 30,
)


def levels(facts: EngineFacts, settings: EngineSettings | None = None) -> dict[str, Level]:
    return {finding.name: finding.level for finding in engine_findings(facts, settings or EngineSettings())}


def test_a_good_engine_has_nothing_against_it() -> None:
    assert set(levels(GOOD).values()) == {Level.OK}


@pytest.mark.parametrize(
    ("facts", "name", "level"),
    [
        (replace(GOOD, version="19.03.15"), "engine", Level.FAIL),
        (replace(GOOD, version="20.10.24+dfsg1"), "engine", Level.WARN),
        (replace(GOOD, version="25.0.1"), "engine", Level.WARN),
        (replace(GOOD, runc_version="1.1.5+ds1", runc_build="1.1.5+ds1-1+deb12u1"), "runc", Level.WARN),
        (replace(GOOD, runc_version="1.1.15"), "runc", Level.WARN),
        (replace(GOOD, runc_version="1.2.7"), "runc", Level.WARN),
        (replace(GOOD, runc_version="1.3.2"), "runc", Level.WARN),
        (replace(GOOD, runc_version=""), "runc", Level.WARN),
        (replace(GOOD, unapplied_limits=("memory",)), "limits", Level.FAIL),
        (replace(GOOD, seccomp=False), "seccomp", Level.FAIL),
        (replace(GOOD, shares_host=False), "engine host", Level.FAIL),
    ],
)
def test_what_is_wrong_is_found_and_comes_with_what_to_do(facts: EngineFacts, name: str, level: Level) -> None:
    found = [finding for finding in engine_findings(facts, EngineSettings()) if finding.level is not Level.OK]
    assert [(finding.name, finding.level) for finding in found] == [(name, level)]
    assert found[0].what_to_do != ""


@pytest.mark.parametrize(
    "facts",
    [
        replace(GOOD, version="24.0.9"),
        replace(GOOD, version="29.0.0"),
        replace(GOOD, runc_version="1.2.8"),
        replace(GOOD, runc_version="1.4.0"),
    ],
)
def test_every_line_of_releases_has_a_floor_of_its_own(facts: EngineFacts) -> None:
    assert set(levels(facts).values()) == {Level.OK}


def test_a_distributions_old_number_is_a_warning_that_says_where_to_look() -> None:
    facts = replace(GOOD, runc_version="1.1.5+ds1", runc_build="1.1.5+ds1-1+deb12u1")
    (runc,) = (finding for finding in engine_findings(facts, EngineSettings()) if finding.name == "runc")
    assert "1.1.5+ds1-1+deb12u1" in runc.what
    assert "CVE-2025-31133" in runc.what_to_do
    assert "security-tracker.debian.org" in runc.what_to_do


def test_a_runtime_that_the_engine_lacks_is_found() -> None:
    assert levels(GOOD, EngineSettings(runtime="runsc"))["runtime"] is Level.FAIL
    assert "runtime" not in levels(replace(GOOD, runtimes=("runc", "runsc")), EngineSettings(runtime="runsc"))


@pytest.mark.parametrize(
    ("facts", "settings", "why"),
    [
        (GOOD, EngineSettings(zygote="off"), "`engine.zygote` is off"),
        (GOOD, EngineSettings(runtime="runsc"), "the runtime is runsc"),
        (replace(GOOD, maps_users=True), EngineSettings(), "the engine maps user ids"),
        (replace(GOOD, shares_host=False), EngineSettings(), "the engine runs on another host"),
    ],
)
def test_what_keeps_a_zygote_away_is_said_and_is_no_fault(
    facts: EngineFacts, settings: EngineSettings, why: str
) -> None:
    finding = zygote_finding(obstacle(settings, facts))
    assert finding.level is Level.OK
    assert finding.what.startswith(f"none, since {why}: sandboxes start more slowly")


def test_nothing_speaks_against_a_zygote_on_a_good_engine() -> None:
    assert obstacle(EngineSettings(), GOOD) == ""
    assert zygote_finding("").what.startswith("kernels are forked into their sandboxes from outside")


def test_versions_are_compared_by_their_numbers() -> None:
    assert not is_older("20.10.24+dfsg1", "20.10")
    assert is_older("6.5.7", "6.5.8")
    assert not is_older("6.10.0", "6.5.8")
    assert is_older("", "1.0")


def test_the_installed_libraries_are_recent_enough() -> None:
    assert {finding.level for finding in package_findings()} == {Level.OK}


def test_facts_are_read_from_the_engines_own_words() -> None:
    info = {
        "CgroupVersion": "1",
        "Runtimes": {"runc": {}},
        "SecurityOptions": ["name=seccomp,profile=unconfined", "name=rootless"],
        "MemoryLimit": True,
        "SwapLimit": False,
        "PidsLimit": True,
        "CpuCfsQuota": True,
    }
    version = {"Version": "24.0.7", "Components": [{"Name": "runc", "Version": "1.1.9", "Details": {"GitCommit": "x"}}]}
    facts = facts_from(info, version, shares_host=True)
    assert facts.unapplied_limits == ("swap",)
    assert (facts.seccomp, facts.maps_users, facts.runc_version) == (False, True, "1.1.9")


async def test_an_engine_that_is_away_is_a_warning_where_another_may_serve_and_a_failure_where_not(
    monkeypatch: pytest.MonkeyPatch, short_dir: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:9/{short_dir.name}")
    found = {}
    for name in ("auto", "docker", "process"):
        findings = await examine(configured(engine=EngineSettings(name=name)), short_dir)
        (found[name],) = (finding.level for finding in findings if finding.name == "engine")
    assert found == {"auto": Level.WARN, "docker": Level.FAIL, "process": Level.WARN}


async def test_a_bash_that_is_missing_is_a_warning_of_the_process_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def of_bash(kernel_name: str) -> list[Level]:
        engine = EngineSettings(name="process")
        found = await look_at_engine(engine, BuildSettings(), Limits(), kernel_names=[kernel_name])
        return [finding.level for finding in found if finding.name == "bash"]

    assert (await of_bash("bash"), await of_bash("python3")) == ([Level.OK], [])
    monkeypatch.setenv("PATH", "/nowhere")
    assert await of_bash("bash") == [Level.WARN]


def configured(**sections: Any) -> Config:
    return Config(**{"server": ServerSection(port=0), "engine": EngineSettings(name="process"), **sections})


async def test_a_database_that_is_away_is_a_finding_and_ends_no_other_check(short_dir: Path) -> None:
    async def look() -> DatabaseFacts:
        raise StoreUnavailable

    findings = await examine(configured(), short_dir, look)
    (database,) = (finding for finding in findings if finding.group is Group.DATABASE)
    assert database == Finding(
        "database",
        Level.FAIL,
        "The database is out of reach; nothing was run.",
        "Start it, or correct `database.url` (empty: the embedded one).",
        Group.DATABASE,
    )
    assert [finding.group for finding in findings] == sorted(
        (finding.group for finding in findings), key=list(Group).index
    )
    assert {finding.name for finding in findings} >= {
        *("open files", "data disk", "clock", "tornado", "engine", "data directory", "port", "tokens")
    }


async def test_a_check_that_breaks_is_a_finding_without_a_stack_trace(
    monkeypatch: pytest.MonkeyPatch, short_dir: Path
) -> None:
    def broken(*_: object) -> Finding:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(machine, "look_at_disk", broken)
    findings = await examine(configured(), short_dir)
    (disk,) = (finding for finding in findings if finding.name == "data disk")
    assert (disk.level, disk.what) == (Level.FAIL, "This could not be looked at (RuntimeError: first line)")
    assert any(finding.name == "tokens" for finding in findings)


@pytest.fixture
def closed(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of another user's that this one may not look into; root may look into all of them."""
    look = os.stat

    def stat(path: Any, *arguments: Any, **kwargs: Any) -> os.stat_result:
        if not isinstance(path, int) and Path(os.fsdecode(path)).is_relative_to(short_dir / "closed" / "x"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return look(path, *arguments, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != short_dir / "closed")
    (short_dir / "closed").mkdir()
    return short_dir / "closed" / "x"


async def test_a_data_directory_that_may_not_be_looked_into_is_a_finding_and_ends_nothing(closed: Path) -> None:
    environ = {"CELLBLOCK_SERVER_DATA_DIR": str(closed)}
    config = configured(server=ServerSection(port=0, data_dir=str(closed)))
    failures = [finding for finding in await app.examine(config, environ) if finding.level is Level.FAIL]
    assert [finding.name for finding in failures] == ["data directory"]
    assert failures[0].what.startswith(f"{closed} cannot be ")


@pytest.mark.parametrize(
    ("free_bytes", "inodes", "level"),
    [
        (100_000_000, None, Level.FAIL),
        (2_000_000_000, None, Level.WARN),
        (50_000_000_000, 100, Level.FAIL),
        (50_000_000_000, 10_000, Level.WARN),
        (50_000_000_000, 1_000_000, Level.OK),
        (50_000_000_000, None, Level.OK),
    ],
)
def test_a_disk_with_little_room_is_found(free_bytes: int, inodes: int | None, level: Level) -> None:
    finding = disk_finding("data disk", Path("/var/lib/cellblock"), free_bytes, inodes)
    assert (finding.level, bool(finding.what_to_do)) == (level, level is not Level.OK)


def test_the_disk_of_a_directory_that_is_not_made_yet_is_that_of_its_parent(short_dir: Path) -> None:
    assert "GB are free" in machine.look_at_disk("data disk", short_dir / "a" / "b").what


NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "database_now", "level"),
    [
        (NOW, None, Level.OK),
        (NOW, NOW + timedelta(seconds=2), Level.OK),
        (NOW, NOW - timedelta(minutes=2), Level.WARN),
        (datetime(1970, 1, 1, tzinfo=UTC), None, Level.FAIL),
    ],
)
def test_a_clock_that_is_wrong_is_found(now: datetime, database_now: datetime | None, level: Level) -> None:
    assert clock_finding(now, database_now).level is level


FACTS = DatabaseFacts("18.1", "UTF8", 50, "0002", ("0001", "0002"), NOW, valid_tokens=0, ever_tokens=False)


@pytest.mark.parametrize(
    ("facts", "levels"),
    [
        (FACTS, [Level.OK, Level.OK]),
        (replace(FACTS, revision=None), [Level.OK, Level.OK]),
        (replace(FACTS, revision="0001"), [Level.OK, Level.WARN]),
        (replace(FACTS, revision="0003"), [Level.OK, Level.FAIL]),
        (replace(FACTS, server_version="13.4"), [Level.FAIL, Level.OK]),
        (replace(FACTS, server_version="19beta1"), [Level.OK, Level.OK]),
        (replace(FACTS, encoding="LATIN1"), [Level.FAIL, Level.OK]),
        (replace(FACTS, max_connections=5), [Level.WARN, Level.OK]),
    ],
)
def test_a_database_of_another_version_is_found(facts: DatabaseFacts, levels: list[Level]) -> None:
    found = list(database_findings(facts))
    assert [finding.level for finding in found] == levels
    assert all(finding.what_to_do for finding in found if finding.level is not Level.OK)


TOKENS = AuthSection(tokens=(Token(sha256="0" * 64),))


@pytest.mark.parametrize(
    ("config", "facts", "level", "said"),
    [
        (configured(), FACTS, Level.OK, "none needed"),
        (configured(), None, Level.OK, "none needed"),
        (configured(auth=TOKENS), None, Level.OK, "required; 1 configured, 0 in the database"),
        (configured(), replace(FACTS, ever_tokens=True, valid_tokens=2), Level.OK, "required; 0 configured, 2 in"),
        (configured(), replace(FACTS, ever_tokens=True), Level.WARN, "all are refused"),
        (configured(auth=AuthSection(required=True)), FACTS, Level.WARN, "all are refused"),
        (configured(server=ServerSection(public_url="https://a.example")), FACTS, Level.WARN, "a proxy"),
    ],
)
def test_who_is_let_in_is_said(config: Config, facts: DatabaseFacts | None, level: Level, said: str) -> None:
    finding = token_finding(config, facts)
    assert finding.level is level
    assert said in finding.what


def test_a_port_in_use_is_found_unless_it_is_the_gateways(short_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = configured(server=ServerSection(port=port))
        found = look_at_port(config, short_dir)
        assert (found.level, f"Port {port} on 127.0.0.1 is in use" in found.what) == (Level.WARN, True)
        held = DataDir.open(short_dir)
        held.tell_address(f"http://127.0.0.1:{port}")
        assert look_at_port(config, short_dir).level is Level.OK
        assert f"used by the gateway with process id {os.getpid()}" in look_at_data_dir(short_dir).what
        held.release()
        assert look_at_port(config, short_dir).level is Level.WARN
    assert look_at_port(configured(server=ServerSection(host="203.0.113.1")), short_dir).level is Level.FAIL
    assert look_at_port(configured(), short_dir).level is Level.OK


def test_a_data_directory_that_cannot_be_used_is_found(short_dir: Path) -> None:
    (short_dir / "file").touch()
    assert look_at_data_dir(short_dir / "file" / "d").level is Level.FAIL
    assert look_at_data_dir(short_dir / ("x" * 100)).level is Level.FAIL
    assert look_at_data_dir(short_dir / "d").level is Level.OK
    assert not (short_dir / "d").exists()


def test_findings_are_shown_by_group_with_what_to_do_and_a_count() -> None:
    shown = io.StringIO()
    findings = [
        Finding("clock", Level.OK, "it is right"),
        Finding("data disk", Level.WARN, "only [little] room", "Free some."),
        Finding("tables", Level.FAIL, "of a newer one", "Update.", Group.DATABASE),
    ]
    show_findings(Console(file=shown, width=80), findings)
    assert [line.rstrip() for line in shown.getvalue().splitlines()] == [
        "Machine",
        " ok    clock      it is right",
        " warn  data disk  only [little] room",
        "                  → Free some.",
        "Database",
        " FAIL  tables     of a newer one",
        "                  → Update.",
        "3 checks: 1 ok, 1 warn, 1 fail.",
    ]


def test_a_library_that_is_missing_or_too_old_is_one_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(package: str) -> str:
        if package == "tornado":
            raise PackageNotFoundError(package)
        return "7.3"

    monkeypatch.setattr(packages, "version", installed)
    advice = {finding.name: finding.what_to_do for finding in package_findings() if finding.level is Level.FAIL}
    assert advice["tornado"] == "Run `pip install 'tornado>=6.5.8'`."
    assert advice["ipykernel"] == "Run `pip install 'ipykernel>=7.4'`."


async def test_a_socket_that_may_not_be_opened_is_told_from_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = ["FileNotFoundError(2, 'No such file or directory')", "PermissionError(13, 'Permission denied')"]
    told = []
    for reason in reasons:
        said = f"Error while fetching server API version: ('Connection aborted.', {reason})"  # docker-py's own words
        monkeypatch.setattr("sessions.provisioners.docker.engine.open_client", refusing(DockerException(said)))
        for name, level in (("docker", Level.FAIL), ("auto", Level.WARN)):
            findings = await look_at_engine(EngineSettings(name=name), BuildSettings(), Limits())
            (finding,) = [finding for finding in findings if finding.name == "engine"]
            assert finding.level is level
            told.append((finding.what, finding.what_to_do))
    for what, what_to_do in told[:2]:
        assert "does not answer" in what
        assert "tart Docker" in what_to_do
    for what, what_to_do in told[2:]:
        assert what.startswith("The Docker engine's socket is there, but this user may not open it")
        assert "--group-add" in what_to_do
        assert "tart Docker" not in what_to_do


def refusing(error: Exception) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise error

    return refuse
