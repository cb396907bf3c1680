"""What each workload of a point did, where there are several or it is a replay: as words and as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.report import figures

PATTERNS = {
    "read": "sequential reads",
    "write": "sequential writes",
    "rw": "sequential reads and writes",
    "randread": "random reads",
    "randwrite": "random writes",
    "randrw": "random reads and writes",
}


def is_open_loop(workload: Mapping[str, Any]) -> bool:
    """Of a workload's options as a result keeps them."""
    replay = workload.get("replay")
    if replay:
        return bool(replay["timed"] and replay["speed"] != "max")
    return bool(workload["rate_iops"])


def recording(workload: Mapping[str, Any]) -> str:
    """The name of what is replayed, and how fast."""
    replay = workload["replay"]
    name = str(replay["path"]).rpartition("/")[2]
    if not is_open_loop(workload):
        return f"{name} as fast as it goes"
    return name if replay["speed"] in (None, 1.0) else f"{name} {replay['speed']:g} times as fast"


def words(workload: Mapping[str, Any]) -> str:
    """What a workload does: "4 KiB random reads, depth 32"."""
    depth = f"depth {workload['iodepth']}"
    if workload.get("replay"):
        return f"replay of {recording(workload)}, {depth}"
    what = f"{figures.size(workload['bs'])} {PATTERNS[workload['rw']]}"
    if workload["flush_every"]:
        what += f", a flush after each {workload['flush_every']}"
    rate = f", {figures.count(workload['rate_iops'])} a second asked for" if workload["rate_iops"] else ""
    return f"{what}, {depth}{rate}"
