"""How far a route trusts what web pages of other sites make a browser do. The checks are in handler.py."""

from __future__ import annotations

from enum import Enum


class Exposure(Enum):
    """What a web page of another site may do with a route."""

    EMBEDDABLE = "embeddable"
    """Show it (`<img>`): nothing but the host name is checked."""

    OPEN = "open"
    """Link to it; a script of another origin is refused."""

    GUARDED = "guarded"
    """Nothing: it runs or changes something."""
