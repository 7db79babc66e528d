"""The playground's page: its HTML, and what a browser lets it do. Pure, but for the template, which is read once."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_TEMPLATE = Path(__file__).parent / "playground.html"


def content_security_policy(nonce: str) -> str:
    """Own scripts, own styles, own server, and nothing else.

    The editor, and frames with HTML of runs, make style elements: the nonce is theirs. Strings become HTML in one
    place alone, for these frames (`trusted-types`). `'self'` of connect-src includes WebSockets.
    """
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            f"style-src 'self' 'nonce-{nonce}'",
            "connect-src 'self'",
            "img-src 'self' data: blob:",
            "frame-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types frame",
        )
    )


def page(*, version: str, nonce: str) -> str:
    """The whole page; its files are of this version."""
    return _template().replace("{{version}}", version).replace("{{nonce}}", nonce)


@cache
def _template() -> str:
    return _TEMPLATE.read_text(encoding="utf-8")
