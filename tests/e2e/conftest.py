"""Makes the rig of e2e_rig.py known to every test in this directory."""

from __future__ import annotations

from e2e_rig import module_database_url, rig, settled

__all__ = ["module_database_url", "rig", "settled"]
