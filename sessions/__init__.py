"""The engine: runs, kernels, the pool and the one service that every face calls. No HTTP, no SQL."""
