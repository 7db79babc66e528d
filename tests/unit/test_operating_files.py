"""What operators start from says nothing that the gateway does not know: compose.yaml, the image, the systemd unit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gateway.app import DRAIN_TIMEOUT_S
from gateway.cli.commands import app
from gateway.config.loader import load
from gateway.config.sections import Config

REPOSITORY = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
DOCKERFILE = (REPOSITORY / "Dockerfile.gateway").read_text()
UNIT_FILE = REPOSITORY / "docs" / "systemd" / "cellblock.service"
NGINX = (REPOSITORY / "docs" / "nginx" / "cellblock.conf").read_text()


def with_defaults(value: object) -> str:
    """`${NAME:-default}` as compose replaces it where the variable is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(value))


def of_image() -> dict[str, str]:
    return dict(re.findall(r"(CELLBLOCK_\w+)=(\S+)", DOCKERFILE))


def unit() -> dict[str, list[str]]:
    """The lines of [Service]: a key may come more than once."""
    found: dict[str, list[str]] = {}
    for line in UNIT_FILE.read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


@pytest.fixture
def composed(tmp_path: Path) -> Config:
    """The configuration of compose.yaml's gateway, in its image."""
    secret = tmp_path / "database_url"
    secret.write_text("postgresql://cellblock:secret@database/cellblock\n")
    given = {name: with_defaults(value) for name, value in COMPOSE["services"]["gateway"]["environment"].items()}
    assert given["CELLBLOCK_DATABASE_URL_FILE"] == "/run/secrets/database_url"
    empty = tmp_path / "config.yaml"
    empty.touch()
    return load(empty, {**of_image(), **given, "CELLBLOCK_DATABASE_URL_FILE": str(secret)})


def test_the_gateway_of_compose_is_configured_with_keys_that_there_are(composed: Config) -> None:
    assert composed.database.url == "postgresql://cellblock:secret@database/cellblock"
    assert composed.auth.is_required
    assert not composed.is_loopback
    assert composed.engine.name == "docker"
    assert (composed.pool, composed.limits, composed.build) == (Config().pool, Config().limits, Config().build)


def test_compose_gives_the_gateway_what_it_mounts_and_time_to_end(composed: Config) -> None:
    gateway, database = COMPOSE["services"]["gateway"], COMPOSE["services"]["database"]
    targets = {volume.split(":")[1] for volume in gateway["volumes"]}
    assert targets == {composed.server.data_dir, "/var/run/docker.sock"}
    assert f"VOLUME {composed.server.data_dir}\n" in DOCKERFILE
    assert gateway["ports"][0].endswith(f":{composed.server.port}")
    assert with_defaults(gateway["ports"][0]).startswith("127.0.0.1:")
    version = re.search(r'^version = "(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert with_defaults(gateway["image"]) == f"cellblock-gateway:{version[1]}"
    for service in (gateway, database):
        assert seconds(service["stop_grace_period"]) > DRAIN_TIMEOUT_S + 15
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}
        assert {"mem_limit", "restart", "pids_limit"} <= service.keys()
        assert {*service["secrets"]} <= COMPOSE["secrets"].keys()


def test_the_image_has_what_the_wheel_is_made_of_and_no_root() -> None:
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    let_in = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name.replace("[m]", "m") for name in copied} == let_in
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == ["10001:10001"]


def test_the_unit_starts_the_gateway_by_options_that_there_are(tmp_path: Path) -> None:
    (command,) = unit()["ExecStart"]
    program, *arguments = command.split()
    assert program == "/opt/cellblock/bin/cellblock"
    assert "--config" in arguments
    there = CliRunner().invoke(app, [*arguments, "--help"])
    assert there.exit_code == 0, there.output
    assert "Start the gateway" in there.output
    variables = dict(line.split("=", 1) for line in unit()["Environment"])
    (tmp_path / "config.yaml").touch()
    data_dir = load(tmp_path / "config.yaml", variables).server.data_dir
    assert data_dir == f"/var/lib/{unit()['StateDirectory'][0]}" == unit()["WorkingDirectory"][0]
    assert seconds(unit()["TimeoutStopSec"][0]) > DRAIN_TIMEOUT_S + 15
    assert unit()["KillMode"] == ["mixed"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT_FILE.name
    copy.write_text(UNIT_FILE.read_text().replace("/opt/cellblock/bin/cellblock", "/bin/true"))
    environ = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], env=environ, capture_output=True, text=True, check=False
    )
    assert UNIT_FILE.name not in checked.stderr, checked.stderr


def directives(name: str) -> Iterator[str]:
    yield from re.findall(rf"^\s*{name} (.*);", NGINX, re.MULTILINE)


def test_nginx_lets_through_what_the_gateway_takes() -> None:
    limits = Config().limits
    assert [*directives("proxy_buffering")] == ["off"]
    (patience,) = directives("proxy_read_timeout")
    assert seconds(patience) > limits.max_timeout_s
    (body,) = directives("client_max_body_size")
    assert int(body.removesuffix("m")) << 20 >= max(limits.disk_bytes, limits.request_bytes)
    (address,) = re.findall(r"server ([\d.:]+);", NGINX)
    assert address == f"{Config().server.host}:{Config().server.port}"


def test_what_the_page_quotes_is_what_cellblock_says() -> None:
    sources = "".join(path.read_text() for top in ("gateway", "sessions") for path in (REPOSITORY / top).rglob("*.py"))
    said = re.sub(r'"\s*\n\s*f?"', "", sources)  # long messages stand in several lines
    page = (REPOSITORY / "docs" / "operating.md").read_text().partition("| symptom |")[2]
    quoted = re.findall(r"^\| (?:\S+: )?`([^`]* [^`]* [^`]*)`", page, re.MULTILINE)
    assert len(quoted) > 5
    for sentence in quoted:
        for part in re.split(r" \(process …\) ", sentence):
            assert part in said, part
