"""``python -m ebjr`` is ``ebjr``."""

from ebjr.cli import main

if __name__ == "__main__":
    main()
