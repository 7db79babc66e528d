"""The faces of Cellblock: HTTP, command line, configuration, and the database adapter."""
