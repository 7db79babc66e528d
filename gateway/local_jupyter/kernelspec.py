"""Writes, lists and removes the kernelspecs by which Jupyter tools find our kernels. Ours name our provisioner.

https://jupyter-client.readthedocs.io/en/stable/kernels.html#kernel-specs
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager

from sessions.errors import Misconfigured, NotFound, SetUpFailed

PROVISIONER = "cellblock"

_BRIDGE = "gateway.local_jupyter.bridge"


@dataclass(frozen=True, slots=True)
class InstalledSpec:
    """A kernelspec of ours that is installed. `config_file` is empty where it names none."""

    name: str
    directory: Path
    display_name: str
    language: str
    config_file: str


def kernelspec_content(language: str, display_name: str, config_file: Path | None) -> dict[str, Any]:
    """The content of kernel.json."""
    options = {"language": language, **({"config_file": str(config_file)} if config_file else {})}
    return {
        # A kernelspec must have one; our provisioner does not use it.
        "argv": [sys.executable, "-P", "-m", _BRIDGE, "--connection-file", "{connection_file}"],
        "display_name": display_name,
        "language": language,
        "interrupt_mode": "signal",
        "metadata": {"debugger": False, "kernel_provisioner": {"provisioner_name": PROVISIONER, "config": options}},
    }


def install(name: str, content: Mapping[str, Any], *, user: bool, prefix: str) -> Path:
    """Write a kernelspec where Jupyter looks for it, in the user's directory or below `prefix`; replaces one of ours.

    Raises Misconfigured for an invalid name or another program's, SetUpFailed when it cannot be written.
    """
    if not re.fullmatch(r"[a-z0-9._-]{1,64}", name, re.IGNORECASE) or name.startswith("."):
        raise Misconfigured(f'A kernelspec\'s name has letters, digits, ".", "_" and "-", unlike "{name}".')
    directory = places(user=user, prefix=prefix) / name
    if directory.exists() and _read(name, directory) is None:
        raise Misconfigured(f"{directory} is another program's kernelspec: choose another --name.")
    with tempfile.TemporaryDirectory() as source:
        Path(source, "kernel.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        Path(source).chmod(0o755)
        try:
            return Path(
                KernelSpecManager().install_kernel_spec(source, name, user=user, prefix=None if user else prefix)
            )
        except OSError as error:
            raise SetUpFailed(
                f"{directory} cannot be written ({error.strerror}): choose another place, for example with --user."
            ) from error


def installed() -> list[InstalledSpec]:
    """Our kernelspecs in all directories where Jupyter looks."""
    found = KernelSpecManager().find_kernel_specs()
    specs = [_read(name, Path(directory)) for name, directory in sorted(found.items())]
    return [spec for spec in specs if spec is not None]


def uninstall(name: str, directory: Path | None = None) -> Path:
    """Remove one of ours, from `directory` or where Jupyter finds it first. Raises NotFound, SetUpFailed."""
    candidates = [_read(name, directory / name)] if directory else [spec for spec in installed() if spec.name == name]
    found = candidates[0] if candidates else None
    if found is None:
        raise NotFound(
            f'There is no kernelspec of Cellblock\'s that is called "{name}": see `cellblock kernelspec list`.'
        )
    try:
        shutil.rmtree(found.directory)
    except OSError as error:
        raise SetUpFailed(f"{found.directory} cannot be removed ({error.strerror}).") from error
    return found.directory


def places(*, user: bool, prefix: str) -> Path:
    """The directory of kernelspecs: the user's, or below a prefix."""
    if user:
        return Path(KernelSpecManager().user_kernel_dir)
    return Path(prefix) / "share" / "jupyter" / "kernels"


def _read(name: str, directory: Path) -> InstalledSpec | None:
    try:
        content = json.loads((directory / "kernel.json").read_text(encoding="utf-8"))
        provisioner = content["metadata"]["kernel_provisioner"]
        if provisioner["provisioner_name"] != PROVISIONER:
            return None
        options = provisioner.get("config", {})
        return InstalledSpec(
            name, directory, content["display_name"], options.get("language", "python"), options.get("config_file", "")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
