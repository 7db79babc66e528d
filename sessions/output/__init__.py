"""From a kernel's messages to events, results and files. Pure."""
