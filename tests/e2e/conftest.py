"""Makes the rigs of this directory known to every test in it."""

from __future__ import annotations

from browser_rig import browser
from client_rig import bob, client, gateway, launch, plain_gateway, s, shared_gateway
from e2e_rig import module_database_url, rig, session_database_url, settled
from jupyter_client_rig import jupyter

__all__ = [
    "bob",
    "browser",
    "client",
    "gateway",
    "jupyter",
    "launch",
    "module_database_url",
    "plain_gateway",
    "rig",
    "s",
    "session_database_url",
    "settled",
    "shared_gateway",
]
