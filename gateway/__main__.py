"""`python -m gateway` is `cellblock`."""

from gateway.cli.commands import main

if __name__ == "__main__":
    main()
