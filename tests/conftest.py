"""The plugins that every test may draw on: engines and the kernel image, Jupyter clients, and PostgreSQL."""

from __future__ import annotations

pytest_plugins = ["engine_fixtures", "jupyter_rig", "store_fixtures"]
