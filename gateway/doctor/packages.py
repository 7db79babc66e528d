"""Of the libraries that Cellblock runs on: those whose old versions are known to be unsafe or unreliable here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from gateway.doctor.findings import Finding, Level
from gateway.doctor.versions import is_older

_FLOORS = {
    "tornado": ("6.5.8", "earlier ones have known vulnerabilities"),
    "ipykernel": ("7.4", "7.0 to 7.3 can wedge the shell channel"),
    "jupyter_client": ("8.9", "messages are built and signed with it"),
}


def package_findings() -> Iterator[Finding]:
    """One for each of them."""
    for package, (floor, reason) in _FLOORS.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            yield Finding(
                package, Level.FAIL, f"{package} is not installed", f"Run `pip install '{package}>={floor}'`."
            )
            continue
        if is_older(installed, floor):
            what = f"{package} {installed} is older than {floor}: {reason}"
            yield Finding(package, Level.FAIL, what, f"Run `pip install '{package}>={floor}'`.")
        else:
            yield Finding(package, Level.OK, f"{package} {installed}")
