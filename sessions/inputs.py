"""What a run may be given beside its code and variables. It is kept until the run has ended, and no longer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_FETCHED = 100
"""How many files one run may be told to bring back."""


@dataclass(frozen=True, slots=True)
class RunInputs:
    """Already validated: paths stay below the working directory, and names are allowed.

    `files` are written before the code runs. Those of `fetch` are brought back although the run did not change them.
    `env` holds environment variables for this run alone; their values may be secrets.
    """

    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    fetch: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    def size_bytes(self) -> int:
        """About how much memory it takes."""
        files = sum(len(path) + len(data) for path, data in self.files.items())
        return files + sum(map(len, self.fetch)) + sum(len(name) + len(value) for name, value in self.env.items())

    def digest(self) -> dict[str, Any]:
        """The same for the same inputs, JSON-ready and without the content of files."""
        sha256s = {path: hashlib.sha256(data).hexdigest() for path, data in self.files.items()}
        return {"files": sha256s, "fetch": list(self.fetch), "env": dict(self.env)}
