"""The command `engine`: finds the command, runs it, and turns errors into one line and an exit status.

Exit status: 0 done, 1 refused or failed, 2 wrong usage, 130 stopped by Ctrl-C. Only what the command at hand
needs is imported, so that `--version` and `--help` answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the console script's entry."""
    from engine.cli.arguments import parse

    try:
        try:
            arguments = parse(sys.argv[1:] if argv is None else argv)
            status: int = arguments.command(arguments)
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            raise
        except OSError as error:
            from engine.experiment.errors import describe

            return _fail(describe(error))
        except Exception as error:
            from engine.experiment.errors import UserError

            if not isinstance(error, UserError):
                raise
            return _fail(str(error), error.status)
    except KeyboardInterrupt:
        print("engine: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; nothing more can be said, least of all at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _fail(message: str, status: int = 1) -> int:
    sys.stdout.flush()
    print(f"engine: {message}", file=sys.stderr)
    return status
