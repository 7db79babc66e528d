"""The page at `/status`, and what it shows: `GET /status.json`."""
