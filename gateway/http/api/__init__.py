"""Cellblock's own routes."""
