"""`cellblock shell`: a session as a prompt."""
