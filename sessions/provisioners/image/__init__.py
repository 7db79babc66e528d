"""The build of the kernel image."""
