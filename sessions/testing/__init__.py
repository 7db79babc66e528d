"""Doubles of the engine's ports, for tests and benchmarks."""
