"""The description as clients get it: `/openapi.json`, and a page for people at `/docs`."""
