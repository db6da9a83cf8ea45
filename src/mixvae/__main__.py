"""Run the command line with `python -m mixvae`."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
        del sys.path[0]  # `-m` puts the working folder first, where a file could stand in for a library

    from mixvae.cli import main

    main()
