"""Makes the rig of the failpoints known to the tests of this directory."""

from __future__ import annotations

from failpoint_rig import crash

__all__ = ["crash"]
