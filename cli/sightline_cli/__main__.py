"""`python -m sightline_cli` is `sightline`."""

from sightline_cli.entry import main

if __name__ == "__main__":
    main()
