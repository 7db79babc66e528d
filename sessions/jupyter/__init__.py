"""Jupyter clients at a session's kernel."""
