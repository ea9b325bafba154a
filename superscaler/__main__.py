"""``python -m superscaler``."""

from superscaler.cli import main

if __name__ == "__main__":
    main()
