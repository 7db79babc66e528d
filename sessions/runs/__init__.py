"""One run, from its admission to its committed answer."""
