"""The kernel image's tag follows from its content, and from nothing else."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest
from msgspec.structs import replace

import kernel_image
from sessions.errors import Misconfigured, SetUpFailed
from sessions.provisioners.image.base import _split_tag
from sessions.provisioners.image.build import build_arguments, build_context, ca_bundle, image_content, kernel_image_tag
from sessions.settings import BuildSettings

SETTINGS = BuildSettings(dependencies=("numpy",), preload=("numpy",))


def tag(settings: BuildSettings) -> str:
    return kernel_image_tag(image_content(settings), settings.base)


def test_the_same_settings_give_the_same_tag() -> None:
    assert re.fullmatch(r"cellblock-kernel:[0-9a-f]{12}", tag(SETTINGS))
    assert tag(SETTINGS) == tag(replace(SETTINGS))


@pytest.mark.parametrize(
    "changed",
    [
        replace(SETTINGS, dependencies=("numpy", "pandas")),
        replace(SETTINGS, preload=()),
        replace(SETTINGS, base="python:3.12-slim"),
    ],
)
def test_what_changes_the_content_changes_the_tag(changed: BuildSettings) -> None:
    assert tag(changed) != tag(SETTINGS)


def test_a_changed_source_file_changes_the_tag() -> None:
    content = dict(image_content(SETTINGS))
    content["kernel_image/supervisor.py"] += b"\n"
    assert kernel_image_tag(content, SETTINGS.base) != tag(SETTINGS)


def test_content_cannot_move_from_one_file_to_the_next_unnoticed() -> None:
    assert kernel_image_tag({"a": b"xy", "b": b""}, "") != kernel_image_tag({"a": b"x", "b": b"y"}, "")


@pytest.mark.parametrize(
    "changed",
    [
        replace(SETTINGS, proxy="http://proxy:3128"),
        replace(SETTINGS, network="none"),
        replace(SETTINGS, ca_bundle="/etc/hosts"),
    ],
)
def test_how_things_are_fetched_does_not_change_the_tag(changed: BuildSettings) -> None:
    assert tag(changed) == tag(SETTINGS)


def test_the_context_holds_every_source_file_readable_and_none_compiled() -> None:
    context = build_context({**image_content(SETTINGS), "inputs/ca.pem": b""})
    with tarfile.open(fileobj=io.BytesIO(context)) as archive:
        modes = {entry.name: entry.mode for entry in archive.getmembers()}
    sources = {f"kernel_image/{path.name}" for path in Path(kernel_image.__file__).parent.glob("*.py")}
    assert sources | {"Dockerfile", "inputs/requirements.txt", "inputs/ca.pem"} <= modes.keys()
    assert {mode for name, mode in modes.items() if Path(name).suffix} == {0o644}
    assert not [name for name in modes if name.endswith(".pyc") or "__pycache__" in name]


def test_the_kernel_itself_is_always_required() -> None:
    requirements = (
        image_content(BuildSettings(dependencies=(), preload=()))["inputs/requirements.txt"].decode().splitlines()
    )
    assert [line for line in requirements if line.startswith("ipykernel>=7.4")]


@pytest.mark.parametrize("name", ["numpy; import os", "", "a.b.", "../x"])
def test_a_preload_that_is_no_module_name_is_refused(name: str) -> None:
    with pytest.raises(Misconfigured, match=r"build\.preload"):
        image_content(replace(SETTINGS, preload=(name,)))


def test_a_proxy_is_an_argument_of_the_build_alone() -> None:
    arguments = build_arguments(replace(SETTINGS, proxy="http://proxy:3128"), "base")
    assert arguments["https_proxy"] == arguments["HTTP_PROXY"] == "http://proxy:3128"
    assert build_arguments(SETTINGS, "base") == {"BASE": "base"}


def test_the_machines_own_certificates_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(variable, raising=False)
    assert ca_bundle(SETTINGS) == b""
    (tmp_path / "ca.pem").write_bytes(b"certificate")
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "missing.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert ca_bundle(SETTINGS) == b"certificate"


def test_a_named_certificate_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SetUpFailed, match=r"build\.ca_bundle"):
        ca_bundle(replace(SETTINGS, ca_bundle=str(tmp_path / "missing.pem")))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("python:3.13-slim", ("python", "3.13-slim")),
        ("python", ("python", "latest")),
        ("registry:5000/python", ("registry:5000/python", "latest")),
        ("registry:5000/python:3.13", ("registry:5000/python", "3.13")),
        ("python@sha256:abc", ("python@sha256:abc", None)),
    ],
)
def test_image_names_are_split_for_a_pull(name: str, parts: tuple[str, str | None]) -> None:
    assert _split_tag(name) == parts
