"""Pages for browsers that use the public API as any client does: the playground at `/`, and their static files."""
