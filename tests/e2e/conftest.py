"""Makes the rigs of this directory known to every test in it."""

from __future__ import annotations

from client_rig import bob, client, launch, s
from e2e_rig import module_database_url, rig, settled
from jupyter_client_rig import jupyter

__all__ = ["bob", "client", "jupyter", "launch", "module_database_url", "rig", "s", "settled"]
