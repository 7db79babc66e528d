"""The plugins that every test may draw on: engines and the kernel image, and PostgreSQL."""

from __future__ import annotations

pytest_plugins = ["engine_fixtures", "store_fixtures"]
