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
    """Over the usable runs of one point. Latencies in ns, of all requests; CPU in µs per request."""
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
    for percentile in ("50.000000", "99.000000", "99.900000"):
        values = [value for run in runs if (value := _latency(run["record"], percentile)) is not None]
        summary[f"latency_p{float(percentile):g}_ns"] = spread(values)
    return summary


def _latency(record: Mapping[str, Any], percentile: str) -> float | None:
    """The worst of the jobs and directions: percentiles do not add up."""
    values = [
        job[way]["clat_ns"]["percentile"][percentile]
        for job in record["jobs"]
        for way in ("read", "write")
        if "percentile" in job[way]["clat_ns"]
    ]
    return max(values, default=None)
