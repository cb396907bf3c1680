"""`python -m engine`: the command `engine`, where it is not on the path."""

from __future__ import annotations

import sys

from engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
