"""Medians with their spread: what the runs of each point say together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OUTLIERS_LEAST = 5  # runs, to call one an outlier


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, minimum and maximum; None of nothing."""
    if not values:
        return None
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def outliers(values: Sequence[float]) -> list[bool]:
    """Which of them lie far from their median: by more than 3.5 median absolute deviations, scaled to a
    normal distribution's, and by more than 5 %. None of fewer than five. They count all the same."""
    if len(values) < OUTLIERS_LEAST:
        return [False] * len(values)
    middle = statistics.median(values)
    usual = 1.4826 * statistics.median(abs(value - middle) for value in values)
    return [abs(value - middle) > max(3.5 * usual, 0.05 * abs(middle)) for value in values]


def usable(runs: Iterable[dict[str, Any]], point: int) -> list[dict[str, Any]]:
    """The runs of a point that count; discarded ones stay in the file and out of the figures."""
    return [run for run in runs if run["point"] == point and not run["discarded"]]


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the usable runs of one point. Latencies in ns, of all requests; CPU in µs per request. Under
    `jobs` the same for each workload by itself."""
    engines = [run["record"]["engine"] for run in runs]
    summary: dict[str, Any] = {
        "runs": len(runs),
        "marked": sum(1 for run in runs if run["marked"]),
        "iops": spread([engine["iops"] for engine in engines]),
        "cpu_us_per_request": spread(
            [e["cpu"]["us_per_request"] for e in engines if e["cpu"]["us_per_request"] is not None]
        ),
        "lock_wait_share": spread(
            [e["lock_wait"]["share"] for e in engines if e["lock_wait"]["share"] is not None]
        ),
        "steal_percent": spread([engine["steal_percent"] for engine in engines]),
        "other_percent": spread([engine["other_percent"] for engine in engines]),
    }
    summary |= _latencies([run["record"]["jobs"] for run in runs])
    names = [job["jobname"] for job in runs[0]["record"]["jobs"]] if runs else []
    summary["jobs"] = {name: _summarise_job(name, runs) for name in names}
    return summary


def _summarise_job(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rates a second; counts of a run."""
    jobs = [next(job for job in run["record"]["jobs"] if job["jobname"] == name) for run in runs]
    seconds = [max(job["job_runtime"] / 1000, 1e-3) for job in jobs]
    flushes = [job["sync"]["total_ios"] for job in jobs]
    return {
        "iops": spread([job["read"]["iops"] + job["write"]["iops"] for job in jobs]),
        "bytes_per_second": spread([job["read"]["bw_bytes"] + job["write"]["bw_bytes"] for job in jobs]),
        "flushes_per_second": spread([n / t for n, t in zip(flushes, seconds, strict=True)]),
        "reads": spread([job["read"]["total_ios"] for job in jobs]),
        "writes": spread([job["write"]["total_ios"] for job in jobs]),
        "flushes": spread(flushes),
        "discards": spread([job["trim"]["total_ios"] for job in jobs]),
        **_latencies([[job] for job in jobs]),
        "flush_latency_p99_ns": spread(
            [p["99.000000"] for job in jobs if (p := job["sync"]["lat_ns"].get("percentile"))]
        ),
    }


def _latencies(runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """From the jobs of each run. The worst of jobs and directions: percentiles do not add up."""
    found: dict[str, Any] = {}
    for percentile in ("50.000000", "99.000000", "99.900000"):
        values = []
        for jobs in runs:
            each = [job[way]["clat_ns"].get("percentile") for job in jobs for way in ("read", "write")]
            if there := [percentiles[percentile] for percentiles in each if percentiles]:
                values.append(max(there))
        found[f"latency_p{float(percentile):g}_ns"] = spread(values)
    return found
