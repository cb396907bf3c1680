"""Results for tests of reports: measured once in a process, small, and changed by those who need others."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from engine import cli

SMALL = """
[run]
title = "Depths & <nodes>"
repeat = 3
[context.io0]
[blockdev.null]
driver = "null"
size = "1G"
[workload.rand]
node = "null"
contexts = ["io0"]
count = 2000
[sweep]
"workload.rand.iodepth" = [1, 8]
"""


@functools.cache
def _measured(text: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "small.toml").write_text(text)
        assert (
            cli.main(["run", str(folder / "small.toml"), "-o", str(folder / "out"), "--allow-debug-build"])
            == 0
        )
        data: dict[str, Any] = json.loads((folder / "out" / "result.json").read_text())
        return data


def measured(text: str = SMALL) -> dict[str, Any]:
    """Data of a result, to be changed at will."""
    return copy.deepcopy(_measured(text))


def small_result(parent: Path, data: dict[str, Any] | None = None, name: str = "out") -> Path:
    """A folder that holds it."""
    folder = parent / name
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(data or measured()))
    return folder
