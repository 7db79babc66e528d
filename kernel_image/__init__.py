"""What runs inside the container: the supervisor, its fork server and the relay between kernel and gateway."""
