"""Has everything looked at, and lets no check end the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gateway.config.sections import Config
from gateway.doctor import database, engine, machine, packages, server
from gateway.doctor.database import DatabaseFacts
from gateway.doctor.findings import Finding, Group, Level
from gateway.host.descriptors import descriptor_limit

_LONGEST_ERROR = 200


async def examine(config: Config, data_dir: Path, look: database.Look | None = None) -> list[Finding]:
    """Everything, group by group. A failing check is a finding, never an exception.

    `look` asks the database; without one, there is none yet.
    """
    report = _Report()
    facts: DatabaseFacts | None = None
    with report.looking(Group.DATABASE, "database") as found:
        if look is None:
            found.append(Finding("database", Level.OK, "embedded PostgreSQL, which the first `cellblock serve` makes"))
        else:
            facts, judged = await database.ask(look)
            found.extend(judged)
    with report.looking(Group.ENGINE, "engine") as found:
        found.extend(
            await engine.look_at_engine(
                config.engine, config.build, config.limits, data_dir, kernel_names=[*config.languages.values()]
            )
        )
    with report.looking(Group.MACHINE, "open files") as found:
        found.append(machine.descriptor_finding(descriptor_limit(), config.pool.max))
    with report.looking(Group.MACHINE, "data disk") as found:
        found.append(machine.look_at_disk("data disk", data_dir))
    with report.looking(Group.MACHINE, "clock") as found:
        found.append(machine.clock_finding(datetime.now(UTC), None if facts is None else facts.now))
    with report.looking(Group.PACKAGES, "packages") as found:
        found.extend(packages.package_findings())
    with report.looking(Group.SERVER, "data directory") as found:
        found.append(server.look_at_data_dir(data_dir))
    with report.looking(Group.SERVER, "port") as found:
        found.append(server.look_at_port(config, data_dir))
    with report.looking(Group.SERVER, "tokens") as found:
        found.append(server.token_finding(config, facts))
    return report.findings()


class _Report:
    """The mutable state is what was found, by group."""

    def __init__(self) -> None:
        self._found: dict[Group, list[Finding]] = {group: [] for group in Group}

    @contextmanager
    def looking(self, group: Group, name: str) -> Iterator[list[Finding]]:
        """A block that fills the list; where it fails, that is what it has found."""
        found: list[Finding] = []
        try:
            yield found
        except Exception as error:  # noqa: BLE001 - the other checks go on
            lines = str(error).splitlines() or [""]
            what = f"This could not be looked at ({type(error).__name__}: {lines[0][:_LONGEST_ERROR]})"
            found.append(Finding(name, Level.FAIL, what, "Report it, with this line and `cellblock --version`."))
        self._found[group] += [replace(finding, group=group) for finding in found]

    def findings(self) -> list[Finding]:
        """All of it, in the order of the groups."""
        return [finding for group in Group for finding in self._found[group]]
