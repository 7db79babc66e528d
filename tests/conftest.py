"""The plugins that every test may use, and the order in which workers take the files: the longest first.

It is no place for fixtures: those are in the plugins and in the folders' own conftest.py.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import httpx._transports.default
import pytest
import structlog
from hypothesis import HealthCheck, settings

pytest_plugins = ["engine_fixtures", "jupyter_rig", "store_fixtures"]

HERE = Path(__file__).parent
DURATIONS = HERE / "durations.json"
"""Seconds of each file whose tests take a second or more; `--record-durations` writes it anew. Others come last."""

# Some environments forbid bytecode files. Each worker would compile all tests, and each of the hundreds of gateways and
# kernels that tests start all of Cellblock.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# For formats that no test has checked, jsonschema would compile 38 grammars, which takes more than a second.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

# Each client would read the certificates of all authorities, which takes 30 ms, and needs none of them.
httpx._transports.default.create_ssl_context = cache(httpx.create_ssl_context)

# By default rich draws each traceback, with all local variables and in colour, which takes a tenth of a second.
_PLAIN = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _PLAIN])

# How fast examples are made is a matter of the machine, which may stand still for seconds.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def file_of(nodeid: str) -> str:
    """The file of a test, relative to this directory."""
    return nodeid.partition("::")[0].removeprefix(f"{HERE.name}/")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-durations", action="store_true", help=f"write {DURATIONS.name}, after a run of all tests"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(DurationsRecorder())


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Spare the collector all test modules and what they import: 450,000 objects, a third of a second each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files. It comes after pytest-randomly's shuffling, which it leaves alone within a file."""
    durations = json.loads(DURATIONS.read_text())
    items.sort(key=lambda item: -durations.get(file_of(item.nodeid), 0))


class DurationsRecorder:
    """Adds up what the tests of each file take, fixtures included."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[file_of(report.nodeid)] += report.duration

    def pytest_sessionfinish(self) -> None:
        longest_first = sorted(self._seconds.items(), key=lambda pair: -pair[1])
        kept = {file: round(seconds) for file, seconds in longest_first if seconds >= 1}
        DURATIONS.write_text(json.dumps(kept, indent=1) + "\n")
