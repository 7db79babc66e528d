"""What is counted and timed of runs, for whoever watches the gateway."""
