"""Where a gateway is found: what the client and the command line assume, and the variables that say otherwise."""

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "CELLBLOCK_URL"
TOKEN_VARIABLE = "CELLBLOCK_TOKEN"  # noqa: S105 - the variable's name
