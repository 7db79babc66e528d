"""Plain processes, without any isolation: for development."""
