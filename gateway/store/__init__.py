"""The Postgres adapter of `sessions.ports.Store`."""
