"""`python -m engine.cli`, where the command is not on the path."""

import sys

from engine.cli import main

sys.exit(main())
