"""`python -m moco` is the command `moco`."""

from moco.cli import main

if __name__ == "__main__":
    main()
