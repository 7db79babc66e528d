"""What is compared: Cellblock, a bare kernel, a container with a new kernel for each run, and programs of others."""
