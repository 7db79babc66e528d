"""What the doctor finds: one record for each thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is. `fail` means that Cellblock will not run code, or not as safely as it says."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Group(StrEnum):
    """What a finding is about. Reports have them in this order."""

    MACHINE = "machine"
    PACKAGES = "packages"
    ENGINE = "engine"
    DATABASE = "database"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `what_to_do` is empty where all is well."""

    name: str
    level: Level
    what: str
    what_to_do: str = ""
    group: Group = Group.MACHINE
