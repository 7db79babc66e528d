"""One route of the table in routes.py: its path, its methods, and who may call it. The checks are in handler.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from tornado.web import RequestHandler

_GREEDY = frozenset({"path", "artifact"})


class Exposure(Enum):
    """What a web page of another site may do with a route."""

    EMBEDDABLE = "embeddable"
    """Show it (`<img>`): nothing but the host name is checked."""

    OPEN = "open"
    """Link to it; a script of another origin is refused."""

    GUARDED = "guarded"
    """Nothing: it runs or changes something."""


@dataclass(frozen=True, slots=True)
class Route:
    """One path and the methods that it has.

    `{name}` in `path` stands for one segment of the URL's path; `{path}` and `{artifact}` stand for the whole rest. A
    route that is not `is_listed` is no part of the API: it is there for its error shape alone, or for our own pages.
    """

    path: str
    handler: type[RequestHandler]
    methods: tuple[str, ...]
    exposure: Exposure = Exposure.GUARDED
    needs_token: bool = True
    is_listed: bool = True

    @property
    def pattern(self) -> str:
        """The regular expression that tornado matches the whole path with."""
        return re.sub(r"\{(\w+)\}", lambda match: ".*" if match[1] in _GREEDY else "[^/]+", self.path)

    @property
    def allow(self) -> str:
        return ", ".join((*self.methods, "OPTIONS"))
