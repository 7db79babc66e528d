"""Why pip, or a build in which it runs, has failed: one sentence that says what to do, and the last lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sessions.errors import SetUpFailed

KEPT_LINES = 80
"""So many of the last lines are enough to find the reason in."""

_SHOWN_LINES = 5
_LONGEST_LINE = 200
_DOCKERS_OWN = "Removing intermediate container"
_NO_DISTRIBUTION = re.compile(r"No matching distribution found for (?P<wanted>.+?)(?: \(from .*\))?$", re.MULTILINE)
_BY_WORDS = (
    (("No space left on device",), "the disk is full. Free some room on it."),
    (
        ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed"),
        "the package index's certificate is not trusted. Set `build.ca_bundle` to the certificates of your network.",
    ),
    (
        (
            "NameResolutionError",
            "name resolution",
            "Temporary failure resolving",
            "Name or service not known",
            "Failed to establish a new connection",
            "Network is unreachable",
            "Connection refused",
            "ConnectTimeout",
            "Read timed out",
            "ReadTimeout",
            "ProxyError",
            "Cannot connect to proxy",
        ),
        "no package index is in reach. Check the network, or set `build.proxy`.",
    ),
    (
        ("ResolutionImpossible", "conflicting dependencies"),
        "its packages exclude one another. Correct the versions in `build.dependencies` or `build.constraints`.",
    ),
)
_BY_PATTERN = (
    (
        _NO_DISTRIBUTION,
        "there is no such package for this Python: {}. Correct `build.dependencies` or `build.constraints`.",
    ),
    (
        re.compile(r"Invalid requirement: '?(?P<wanted>[^'\n]+)"),
        "{!r} is no requirement that pip can read. Correct `build.dependencies`.",
    ),
    (
        re.compile(r"No module named '(?P<wanted>[^']+)'"),
        "there is no module {}. Correct `build.preload`, or add its package to `build.dependencies`.",
    ),
)


def set_up_failure(failed: str, lines: Sequence[str], how: str) -> SetUpFailed:
    """`failed` says what has, without a full stop; `how` is how it ended, and is said where nothing better is known."""
    why = why_of(lines)
    said_last = [line for line in lines if not line.startswith(_DOCKERS_OWN)][-_SHOWN_LINES:]
    shown = [_shortened(line) for line in (*said_last, *([how] if why else []))]
    said = f"{failed}: {why or f'{how}.'}"
    return SetUpFailed("\n  ".join([f"{said}\nThe last lines were:", *shown]) if shown else said)


def _shortened(line: str) -> str:
    """A long one without its middle: Docker repeats a whole step, and ends with its status."""
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE - 60]} … {line[-57:]}"


def why_of(lines: Sequence[str]) -> str:
    """The reason, with what to do about it; empty where it is none of the usual ones."""
    text = "\n".join(lines)
    missing = _NO_DISTRIBUTION.search(text)
    if missing is not None and "(from versions: none)" not in text:
        return (
            f"there is no such version for this Python: {missing['wanted']}. Correct `build.dependencies` or "
            "`build.constraints`."
        )
    # With a broken connection pip ends as with a package that there is not.
    for words, why in _BY_WORDS:
        if any(word in text for word in words):
            return why
    for pattern, why in _BY_PATTERN:
        if (found := pattern.search(text)) is not None:
            return why.format(found["wanted"])
    return ""
