"""What each workload of a point did, where there are several or it is a replay: as words and as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.report import figures
from engine.report.rows import Row, column_name, read_rows

PATTERNS = {
    "read": "sequential reads",
    "write": "sequential writes",
    "rw": "sequential reads and writes",
    "randread": "random reads",
    "randwrite": "random writes",
    "randrw": "random reads and writes",
}


_KINDS = ("read", "write", "flush", "discard")


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
        what += f", a flush every {workload['flush_every']}"
    rate = f", {figures.count(workload['rate_iops'])} a second asked for" if workload["rate_iops"] else ""
    return f"{what}, {depth}{rate}"


def workload_table(data: Mapping[str, Any]) -> tuple[list[str], list[list[str]], int]:
    """Head, a row for each workload of each point that has runs, and how many of the columns are words.

    No rows where each point has one workload and none is a replay: then the table of points says it all.
    """
    keys = list(data["plan"]["sweep"])
    head = [*(column_name(key) for key in keys), "mark", "workload", "what"]
    left = len(head)
    head += ["IOPS", "min … max", "bandwidth", "p50", "p99", "p99.9", "flushes/s", "flush p99", "done"]
    rows = read_rows(data)
    if not any(len(row.workloads) > 1 or any(w.get("replay") for w in row.workloads) for row in rows):
        return head, [], left
    lines = [_line(row, keys, workload) for row in rows for workload in row.workloads]
    return head, [line for line in lines if line], left


def _line(row: Row, keys: list[str], workload: Mapping[str, Any]) -> list[str]:
    job = row.summary.get("jobs", {}).get(workload["name"])
    if job is None:  # of a result from before there were figures of each
        return []

    def median(key: str) -> float | None:
        return None if job[key] is None else float(job[key]["median"])

    rate, flushes = job["iops"], median("flushes_per_second")
    return [
        *(row.labels.get(key, "") for key in keys),
        (row.mark or "") + (" *" if row.disturbed else ""),
        workload["name"],
        words(workload),
        figures.count(rate["median"]),
        f"{figures.count(rate['min'])} … {figures.count(rate['max'])}",
        figures.bandwidth(median("bytes_per_second") or 0.0),
        *(figures.duration_ns(median(f"latency_p{p}_ns")) for p in ("50", "99", "99.9")),
        figures.count(flushes) if flushes else "",
        figures.duration_ns(median("flush_latency_p99_ns")) if flushes else "",
        _done(job) if workload.get("replay") else "",
    ]


def _done(job: Mapping[str, Any]) -> str:
    """How many operations of each kind, of the median run."""
    counts = {kind: round(job[f"{kind}{'es' if kind == 'flush' else 's'}"]["median"]) for kind in _KINDS}
    return ", ".join(
        f"{count} {kind}{'' if count == 1 else 'es' if kind == 'flush' else 's'}"
        for kind, count in counts.items()
        if count
    )
