"""What Cellblock costs, beside a bare kernel, the plain way and what others offer: `make bench`."""
