"""Engines: each module starts, lists and ends sandboxes in one way."""
