"""``python -m geofloor``: the same as the command ``geofloor``."""

from geofloor.planning._cli import main

if __name__ == "__main__":
    main()
