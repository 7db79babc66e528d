"""From the engine's records to the bytes that clients get. Pure."""
