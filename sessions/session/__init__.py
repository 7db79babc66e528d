"""Sessions that clients keep: one kernel, and runs in order."""
