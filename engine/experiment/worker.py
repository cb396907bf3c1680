"""A process that runs its share of one point: `python -P -m engine.experiment.worker`.

Over standard input and output, one JSON value a line: the order comes in, "ready" goes out when everything is
open and warm, "go" comes in, the result goes out. Every run gets fresh processes, so that a run with two
differs from a run with one in nothing else. End of file on standard input before "go" means: give up. A
worker ends with who started it, however that ends: what goes on alone would disturb the next measurement.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

from engine.experiment.errors import UserError, describe
from engine.experiment.model import Setup


def _say(value: Any) -> None:
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()


def _gate() -> None:
    _say("ready")
    if sys.stdin.readline().strip() != '"go"':
        raise SystemExit(1)


_PR_SET_PDEATHSIG = 1


def _end_with(parent: int) -> None:
    """From now on the kernel kills this process when the thread that started it is no more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it had ended by then
        raise SystemExit(1)


def main() -> int:
    line = sys.stdin.readline()
    if not line:
        return 1
    order = json.loads(line)
    _end_with(order["parent"])
    from engine.experiment.measure import Rig
    from engine.experiment.replay import inherited

    try:
        recordings = inherited(order["recordings"])
        with Rig(Setup.from_json(order["setup"]), order["process"], recordings) as rig:
            result = rig.run(_gate)
        _say({"result": result})
    except UserError as error:
        _say({"error": str(error), "path": getattr(error, "path", ())})
    except OSError as error:
        _say({"error": describe(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
