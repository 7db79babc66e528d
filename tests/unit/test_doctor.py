"""The doctor's judgements, on what engines have been seen to say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import NoReturn

import pytest
from docker.errors import DockerException

from gateway import doctor
from gateway.doctor import Finding, Level, engine_findings, examine, is_older, package_findings, zygote_finding
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
        findings = await examine(EngineSettings(name=name), BuildSettings(), Limits())
        (found[name],) = (finding.level for finding in findings if finding.name == "engine")
    assert found == {"auto": Level.WARN, "docker": Level.FAIL, "process": Level.WARN}


async def test_a_database_that_is_away_is_a_finding() -> None:
    async def ping() -> None:
        raise StoreUnavailable

    findings = await examine(EngineSettings(name="process"), BuildSettings(), Limits(), ping)
    (database,) = (finding for finding in findings if finding.name == "database")
    assert database == Finding(
        "database",
        Level.FAIL,
        "The database is out of reach; nothing was run.",
        "Start it, or correct `database.url` (empty: the embedded one).",
    )


def test_a_library_that_is_missing_or_too_old_is_one_for_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(package: str) -> str:
        if package == "tornado":
            raise PackageNotFoundError(package)
        return "7.3"

    monkeypatch.setattr(doctor, "version", installed)
    advice = {finding.name: finding.what_to_do for finding in package_findings() if finding.level is Level.FAIL}
    assert advice["tornado"] == "Run `pip install 'tornado>=6.5.8'`."
    assert advice["ipykernel"] == "Run `pip install 'ipykernel>=7.4'`."


async def test_a_socket_that_may_not_be_opened_is_told_from_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = ["FileNotFoundError(2, 'No such file or directory')", "PermissionError(13, 'Permission denied')"]
    told = []
    for reason in reasons:
        said = f"Error while fetching server API version: ('Connection aborted.', {reason})"  # docker-py's own words
        monkeypatch.setattr("sessions.provisioners.docker.engine.open_client", refusing(DockerException(said)))
        findings = await examine(EngineSettings(name="docker"), BuildSettings(), Limits())
        (finding,) = [finding for finding in findings if finding.name == "engine"]
        assert finding.level is Level.FAIL
        told.append(finding.what)
    assert "does not answer" in told[0]
    assert "--group-add" in told[1]


def refusing(error: Exception) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise error

    return refuse
