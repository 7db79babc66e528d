"""Versions, compared by their numbers, and which of them have known holes."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holes:
    """Known holes, and where they are closed: from the last of `floors` on, and in older lines from their own floor."""

    floors: tuple[str, ...]
    what: str
    look_up: str

    def are_open(self, installed: str) -> bool:
        """Whether this version, taken by its number alone, has them."""
        line = _numbers(installed)[:2]
        own = [floor for floor in self.floors if _numbers(floor)[:2] == line]
        return is_older(installed, own[0] if own else self.floors[-1])


# As of November 2025. Look here again with every release: https://github.com/opencontainers/runc/security/advisories
RUNC_HOLES = Holes(
    ("1.2.8", "1.3.3", "1.4"),
    "a container can escape before runc 1.2.8 and 1.3.3 (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881)",
    "CVE-2025-31133",
)
# As of January 2024; later ones are about plugins and firewalls that sandboxes do not depend on.
# https://github.com/moby/moby/security/advisories
DOCKER_HOLES = Holes(
    ("24.0.9", "25.0.2"),
    "before Docker 24.0.9 and 25.0.2 what is built can be poisoned through the build cache (CVE-2024-24557)",
    "CVE-2024-24557",
)


def is_older(installed: str, floor: str) -> bool:
    """Compare the numbers that versions start with: `20.10.24+dfsg1` is not older than `20.10`."""
    return _numbers(installed) < _numbers(floor)


def _numbers(text: str) -> tuple[int, ...]:
    start = re.match(r"[0-9]+(\.[0-9]+)*", text)
    return tuple(map(int, start.group().split("."))) if start else ()
