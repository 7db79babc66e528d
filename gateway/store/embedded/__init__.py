"""A PostgreSQL server of our own, for gateways that are given no database."""
