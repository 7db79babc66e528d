"""Tokens to tenants, and which pages and host names may come in."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import MAX_TOKEN_CHARACTERS, Authenticator, SiteRules, StoredTokens, Token
from sessions.errors import Forbidden, Unauthorized
from sessions.model import ANONYMOUS, TenantId


def token(secret: str, tenant: str) -> Token:
    return Token(sha256=hashlib.sha256(secret.encode()).hexdigest(), tenant=tenant)


AUTHENTICATOR = Authenticator([token("alpha", "alice"), token("bêta", "bob")], required=True)
RULES = SiteRules.of(
    loopback=True,
    public_url="https://cells.example.org/base",
    allowed_origins=["https://Chat.example.org"],
    allowed_hosts=["box.lan"],
)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "token", "Token", "BEARER  "])
def test_a_known_token_is_its_tenant(scheme: str) -> None:
    assert AUTHENTICATOR.tenant(f"{scheme} alpha") == "alice"


def test_a_token_beyond_ascii_is_compared_as_the_bytes_that_were_sent() -> None:
    assert AUTHENTICATOR.tenant("Bearer " + "bêta".encode().decode("latin-1")) == "bob"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic alpha",
        "alpha",
        "Bearer alph",
        "Bearer alpha, Bearer alpha",
        "Bearer \u00ff\u00fe",
        "Bearer " + "a" * (MAX_TOKEN_CHARACTERS + 1),
        "Bearer \x00",
        "Bearer \ud800",
    ],
)
def test_everything_else_is_unauthorized(header: str | None) -> None:
    with pytest.raises(Unauthorized):
        AUTHENTICATOR.tenant(header)


@given(st.text())
def test_no_header_does_more_than_be_refused(header: str) -> None:
    with pytest.raises(Unauthorized):
        AUTHENTICATOR.tenant(header)


def test_where_there_are_no_tokens_a_header_means_nothing() -> None:
    assert Authenticator([], required=False).tenant("Bearer whatever") == ANONYMOUS


def test_where_tokens_are_optional_a_wrong_one_is_still_wrong() -> None:
    optional = Authenticator([token("alpha", "alice")], required=False)
    assert optional.tenant(None) == ANONYMOUS
    with pytest.raises(Unauthorized):
        optional.tenant("Bearer beta")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "localhost.:1",
        "127.0.0.1:8000",
        "[::1]:8000",
        "[::1]",
        "cells.example.org",
        "box.lan:80",
    ],
)
def test_our_own_host_names(host: str) -> None:
    RULES.check_host(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example", "[::2]"]
)
def test_a_rebound_host_name_is_forbidden_on_loopback_alone(host: str) -> None:
    with pytest.raises(Forbidden):
        RULES.check_host(host)
    SiteRules.of(loopback=False, public_url="", allowed_origins=[], allowed_hosts=[]).check_host(host)


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "http://localhost:8000",
        "https://localhost:8000",
        "https://chat.example.org",
        "https://chat.example.org:443",
        "https://cells.example.org",
    ],
)
def test_our_own_and_allowed_origins(origin: str | None) -> None:
    RULES.check_origin(origin, "localhost:8000")


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://localhost:3000",
        "http://chat.example.org",
        "https://chat.example.org:444",
        "https://chat.example.org.evil.example",
        "chrome-extension://localhost:8000",
        "\ud800",
    ],
)
def test_foreign_origins_are_forbidden(origin: str) -> None:
    with pytest.raises(Forbidden):
        RULES.check_origin(origin, "localhost:8000")


def test_a_request_that_another_site_caused_is_forbidden_unless_its_origin_is_allowed() -> None:
    for fine in (None, "same-origin", "none"):
        RULES.check_fetch_site(fine, None)
    for foreign in ("cross-site", "same-site", "anything"):
        with pytest.raises(Forbidden):
            RULES.check_fetch_site(foreign, None)
        RULES.check_fetch_site(foreign, "https://chat.example.org")


BETA = StoredTokens({hashlib.sha256(b"beta").digest(): TenantId("bob")}, ever=True)
REVOKED = StoredTokens(ever=True)


def test_a_stored_token_counts_from_when_it_is_known_until_it_is_revoked() -> None:
    authenticator = Authenticator([token("alpha", "alice")], required=None)
    with pytest.raises(Unauthorized):
        authenticator.tenant("Bearer beta")
    authenticator.set_stored(BETA)
    assert authenticator.tenant("Bearer beta") == "bob"
    assert authenticator.tenant("Bearer alpha") == "alice"
    authenticator.set_stored(REVOKED)
    with pytest.raises(Unauthorized):
        authenticator.tenant("Bearer beta")


def test_the_first_stored_token_closes_the_door_and_the_last_one_does_not_open_it() -> None:
    authenticator = Authenticator([], required=None)
    assert authenticator.tenant(None) == ANONYMOUS
    authenticator.set_stored(BETA)
    with pytest.raises(Unauthorized):
        authenticator.tenant(None)
    authenticator.set_stored(REVOKED)
    with pytest.raises(Unauthorized):
        authenticator.tenant(None)


def test_where_none_is_required_a_stored_one_names_its_tenant() -> None:
    authenticator = Authenticator([], required=False)
    authenticator.set_stored(BETA)
    assert authenticator.tenant(None) == ANONYMOUS
    assert authenticator.tenant("Bearer beta") == "bob"
    with pytest.raises(Unauthorized):
        authenticator.tenant("Bearer gamma")


def test_required_without_any_token_lets_nobody_in() -> None:
    with pytest.raises(Unauthorized):
        Authenticator([], required=True).tenant("Bearer whatever")
