"""The link to a supervisor: its handshake, the numbers of its frames, and what is sent again over a new one."""
