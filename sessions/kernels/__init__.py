"""Kernels as the gateway sees them, and where they come from."""
