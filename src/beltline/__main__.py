"""`python -m beltline` is `beltline`."""

import sys

from beltline.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
