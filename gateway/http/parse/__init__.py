"""From requests to what is asked of the service. Pure."""
