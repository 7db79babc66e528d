"""Authentication and site rules: which tenant a token names, and which web pages and hosts may reach this server.

It decides on header values alone; handlers read the headers and answer. No token is kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from sessions.errors import Forbidden, Unauthorized
from sessions.model import ANONYMOUS, TenantId

MAX_TOKEN_CHARACTERS = 1024
TENANT = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SCHEMES = ("bearer", "token")
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Token(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bearer token, known by its SHA-256 alone. `name` is for the operator's own eyes."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$")]
    tenant: Annotated[str, Meta(pattern=f"^{TENANT.pattern}$")] = "default"
    name: str = ""


class StoredTokens(NamedTuple):
    """Tokens in the database: the tenants of those that are valid, by SHA-256, and whether there has ever been one."""

    valid: Mapping[bytes, TenantId] = MappingProxyType({})
    ever: bool = False


class Authenticator:
    """Finds the tenant of a token. Of tokens it knows the SHA-256 alone.

    The mutable state is the tokens that are made and revoked while the gateway runs.
    """

    def __init__(self, tokens: Iterable[Token], *, required: bool | None) -> None:
        """`required` is None where a token is needed exactly when there are any."""
        self._configured = {bytes.fromhex(token.sha256): TenantId(token.tenant) for token in tokens}
        self._stored = StoredTokens()
        self._required = required

    @property
    def is_required(self) -> bool:
        """Whether a request without a token is refused."""
        return self._has_tokens if self._required is None else self._required

    @property
    def _has_tokens(self) -> bool:
        return bool(self._configured) or self._stored.ever

    def set_stored(self, stored: StoredTokens) -> None:
        """The stored tokens as they are now. When the last one is revoked, nobody is let in without one."""
        self._stored = stored

    def tenant(self, authorization: str | None) -> TenantId:
        """The tenant of an `Authorization` header (None: there was none). Raises Unauthorized.

        Where no token exists, whatever is sent is ignored: clients that insist on sending some key still work.
        """
        if not self._has_tokens and not self.is_required:
            return ANONYMOUS
        if authorization is None:
            if self.is_required:
                raise Unauthorized
            return ANONYMOUS
        scheme, _, token = authorization.strip().partition(" ")
        token = token.strip()
        if scheme.lower() not in _SCHEMES or not 0 < len(token) <= MAX_TOKEN_CHARACTERS:
            raise Unauthorized
        return self._lookup(token)

    def _lookup(self, token: str) -> TenantId:
        """What the time of a look-up tells of a digest is of no use to somebody who has not got the token."""
        # Header bytes arrive decoded as Latin-1; what is hashed is what was sent.
        digest = hashlib.sha256(token.encode("latin-1", "replace")).digest()
        found = self._configured.get(digest) or self._stored.valid.get(digest)
        if found is None:
            raise Unauthorized("This token is not known here: check it, or ask for a new one.")
        return found


@dataclass(frozen=True, slots=True)
class SiteRules:
    """Which host names are ours, and which web pages may use this server.

    On loopback, every page that a browser on this machine shows could reach us, by GET or form POST, and by DNS
    rebinding even with a host name of its own. `hosts` is None where any Host will do (beyond loopback, where a token
    is always required, and a browser does not send one by itself).
    """

    hosts: frozenset[str] | None
    origins: frozenset[str]

    @classmethod
    def of(
        cls, *, loopback: bool, public_url: str, allowed_origins: Iterable[str], allowed_hosts: Iterable[str]
    ) -> SiteRules:
        """The rules of one configuration."""
        public = urlsplit(public_url)
        origins = {_normal_origin(origin) for origin in allowed_origins}
        hosts = {_host_name(host) for host in allowed_hosts} | _LOOPBACK_NAMES
        if public.netloc:
            origins.add(_normal_origin(f"{public.scheme}://{public.netloc}"))
            hosts.add(_host_name(public.netloc))
        return cls(hosts=frozenset(hosts) if loopback else None, origins=frozenset(origins))

    def check_host(self, host: str) -> None:
        """Raise Forbidden unless the `Host` header names us."""
        if self.hosts is not None and _host_name(host) not in self.hosts:
            raise Forbidden(
                "This host name is not ours: use localhost or 127.0.0.1, or add it to `server.allowed_hosts`."
            )

    def is_allowed_origin(self, origin: str | None) -> bool:
        """Whether a page of this `Origin` was let in by the configuration."""
        return origin is not None and _normal_origin(origin) in self.origins

    def check_origin(self, origin: str | None, host: str) -> None:
        """Raise Forbidden when there is an `Origin` that is neither our own nor allowed."""
        if origin is None or self.is_allowed_origin(origin):
            return
        # The scheme is not compared: behind a TLS proxy we do not know our own.
        scheme, separator, netloc = origin.partition("://")
        if not separator or scheme.lower() not in ("http", "https") or netloc.lower() != host.lower():
            raise Forbidden(
                "This request came from a web page of another site: to let it in, add its origin to "
                "`server.allowed_origins`."
            )

    def check_fetch_site(self, fetch_site: str | None, origin: str | None) -> None:
        """Raise Forbidden when the browser says that another site caused this request (`Sec-Fetch-Site`)."""
        if fetch_site is None or self.is_allowed_origin(origin):
            return
        if fetch_site.strip().lower() not in ("same-origin", "none"):
            raise Forbidden("This request was caused by a web page of another site, which may not run code here.")


def _host_name(host: str) -> str:
    """`Localhost.:8000` becomes `localhost`; IPv6 addresses keep their brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].removesuffix(".")


def _normal_origin(origin: str) -> str:
    """Lower case, without the port that the scheme implies."""
    origin = origin.strip().lower().removesuffix("/")
    scheme, _, netloc = origin.partition("://")
    implied = {"http": ":80", "https": ":443"}.get(scheme, ":")
    return f"{scheme}://{netloc.removesuffix(implied)}"
