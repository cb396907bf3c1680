"""What a run did in each slice of its time, and whether its rate had settled.

A slice is as long as `run.sample` says; the last one ends with the run. Histograms of slices add up to those
of the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from engine.histogram import Histogram, bucket_of, low_of

if TYPE_CHECKING:
    from engine.experiment.model import Generator
    from engine.workload import Workload

COARSER = 3  # bits: a slice keeps 4 buckets for each power of two, which is what a heat map shows
SLICES_LEAST = 6  # of a run, to say anything of its rate
DRIFT_MOST = 0.05  # of the mean, over the second half …
SPREAD_MOST = 0.20  # … and between its fastest and slowest slice


class Sampler:
    """Looks at running generators at the end of each slice. One thread, which also waits for them."""

    def __init__(
        self, generators: Sequence[Generator], workloads: Sequence[Workload], seconds: float
    ) -> None:
        self._pairs = list(zip(generators, workloads, strict=True))
        self._seconds = seconds
        self._began = self._last = time.monotonic()
        self._before: dict[str, dict[str, Any]] = {  # nothing: some have been done by now, and count
            generator.workload.name: {"reads": 0, "writes": 0, "latency": Histogram()}
            for generator in generators
        }
        self.slices: list[dict[str, Any]] = []

    def due_in(self) -> float:
        """Seconds until the slice ends."""
        return max(0.0, self._last + self._seconds - time.monotonic())

    def take(self) -> None:
        now, jobs = time.monotonic(), self._look()
        self.slices.append(
            {
                "end": now - self._began,
                "seconds": now - self._last,
                "jobs": {name: _between(self._before[name], job) for name, job in jobs.items()},
            }
        )
        self._last, self._before = now, jobs

    def _look(self) -> dict[str, dict[str, Any]]:
        jobs: dict[str, dict[str, Any]] = {}
        for generator, workload in self._pairs:
            result = workload.result()
            job = jobs.setdefault(generator.workload.name, {"reads": 0, "writes": 0, "latency": Histogram()})
            job["reads"] += result.reads
            job["writes"] += result.writes
            job["latency"].merge(result.read_latency)
            job["latency"].merge(result.write_latency)
        return jobs


def _between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "reads": after["reads"] - before["reads"],
        "writes": after["writes"] - before["writes"],
        "latency": after["latency"].since(before["latency"]).to_dict(),
    }


def merge_slices(parts: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Those of all processes, which began together, slice by slice: times in seconds, latencies in ns.

    Each has `end` (since the beginning), `seconds`, and for each job `reads`, `writes`, `p50`, `p99`, `max`
    and `latency`: pairs of the lowest value of a bucket and how many fell into it.
    """
    merged = []
    for slices in zip_longest(*parts):
        there = [one for one in slices if one is not None]
        names = dict.fromkeys(name for one in there for name in one["jobs"])
        merged.append(
            {
                "end": round(max(one["end"] for one in there), 6),
                "seconds": round(max(one["seconds"] for one in there), 6),
                "jobs": {
                    name: _merge_jobs([one["jobs"][name] for one in there if name in one["jobs"]])
                    for name in names
                },
            }
        )
    return merged


def _merge_jobs(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = Histogram()
    for part in parts:
        whole.merge(Histogram.from_dict(part["latency"]))
    coarse: dict[int, int] = {}
    for low, _, count in whole.buckets():
        start = low_of(bucket_of(low) >> COARSER << COARSER)
        coarse[start] = coarse.get(start, 0) + count
    p50, p99 = whole.percentiles((50, 99))
    return {
        "reads": sum(part["reads"] for part in parts),
        "writes": sum(part["writes"] for part in parts),
        "p50": p50,
        "p99": p99,
        "max": whole.max,
        "latency": [list(pair) for pair in coarse.items()],
    }


def rates(slices: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(end in seconds, requests a second of all jobs) of each slice; not of a last one that is short."""
    whole = max((one["seconds"] for one in slices), default=0.0)
    return [
        (one["end"], sum(job["reads"] + job["writes"] for job in one["jobs"].values()) / one["seconds"])
        for one in slices
        if one["seconds"] > whole / 2
    ]


def settled(slices: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Of the second half of a run: `drift`, by how much the rate moved along its regression line, and
    `spread`, between its fastest and slowest slice, both as shares of the mean; and whether that is `steady`.
    None of a run that is too short to say."""
    points = rates(slices)
    if len(points) < SLICES_LEAST:
        return None
    half = points[len(points) // 2 :]
    times, values = [t for t, _ in half], [rate for _, rate in half]
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    if mean <= 0:
        return {"slices": len(half), "drift": 0.0, "spread": 0.0, "steady": False}
    slope = sum((t - middle) * (v - mean) for t, v in half) / sum((t - middle) ** 2 for t in times)
    drift = slope * (times[-1] - times[0]) / mean
    spread = (max(values) - min(values)) / mean
    return {
        "slices": len(half),
        "drift": round(drift, 4),
        "spread": round(spread, 4),
        "steady": abs(drift) <= DRIFT_MOST and spread <= SPREAD_MOST,
    }
