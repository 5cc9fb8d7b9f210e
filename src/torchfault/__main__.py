"""``python -m torchfault``: the same as the command ``torchfault``."""

import sys

from torchfault.cli import main

if __name__ == "__main__":
    sys.exit(main())
