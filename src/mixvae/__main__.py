"""Run the command line by `python -m mixvae`."""

from mixvae.cli import main

if __name__ == "__main__":
    main()
