"""What all HTTP requests and WebSockets have in common."""
