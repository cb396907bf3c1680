"""Figures of a workload in the layout of fio's JSON output (fio 3.x, `--output-format=json`).

What fio has and the engine does not measure is left out rather than filled with zeroes: its bandwidth and
IOPS samples over time, and the sizes of its submission batches (ours are under `engine`, for each context).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.histogram import Histogram

PERCENTILES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)
# Upper bounds of fio's latency classes, and the key of what is above the last one.
_CLASSES_NS = (2, 4, 10, 20, 50, 100, 250, 500, 750, 1000)
_CLASSES_MS = (*_CLASSES_NS, 2000)
_DEPTHS = ("1", "2", "4", "8", "16", "32", ">=64")


def latency(histogram: Histogram, percentiles: bool = False) -> dict[str, Any]:
    """`clat_ns` (with percentiles) or `lat_ns`."""
    block: dict[str, Any] = {
        "min": histogram.min,
        "max": histogram.max,
        "mean": round(histogram.mean, 6),
        "stddev": round(histogram.stddev, 6),
        "N": histogram.count,
    }
    if percentiles and histogram.count:
        values = histogram.percentiles(PERCENTILES)
        block["percentile"] = {f"{p:.6f}": value for p, value in zip(PERCENTILES, values, strict=True)}
    return block


def direction(requests: int, transferred: int, seconds: float, histogram: Histogram) -> dict[str, Any]:
    """`read`, `write` or `trim` of a job."""
    rate = 1.0 / seconds if seconds > 0 else 0.0
    return {
        "io_bytes": transferred,
        "io_kbytes": transferred // 1024,
        "bw_bytes": round(transferred * rate),
        "bw": round(transferred * rate / 1024),
        "iops": round(requests * rate, 6),
        "runtime": round(seconds * 1000) if requests else 0,
        "total_ios": requests,
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": latency(Histogram()),
        "clat_ns": latency(histogram, percentiles=True),
        "lat_ns": latency(histogram),
    }


def merged(parts: Iterable[Histogram]) -> Histogram:
    """All of them as one."""
    whole = Histogram()
    for part in parts:
        whole.merge(part)
    return whole


def brief(histogram: Histogram) -> dict[str, Any]:
    """What a report says of a wait, in ns."""
    p50, p99 = histogram.percentiles([50.0, 99.0])
    return {
        "count": histogram.count,
        "total_ns": histogram.sum,
        "mean": round(histogram.mean, 1),
        "p50": p50,
        "p99": p99,
        "max": histogram.max,
    }


def depth_levels(counts: Sequence[int]) -> dict[str, float]:
    """`iodepth_level`, in percent of all submissions, from the counts at 1, 2, 4, … 64, 128 and more."""
    total = sum(counts)
    joined = [*counts[:6], sum(counts[6:])]
    return {key: _percent(count, total) for key, count in zip(_DEPTHS, joined, strict=True)}


def latency_classes(histogram: Histogram) -> dict[str, dict[str, float]]:
    """`latency_ns`, `latency_us` and `latency_ms`: the share of requests up to each bound, in percent."""
    classes: list[tuple[str, str, float]] = []
    for unit, factor, bounds in (
        ("ns", 1, _CLASSES_NS),
        ("us", 1_000, _CLASSES_NS),
        ("ms", 1_000_000, _CLASSES_MS),
    ):
        classes += [(f"latency_{unit}", str(bound), bound * factor) for bound in bounds]
    classes.append(("latency_ms", ">=2000", float("inf")))
    counts = [0] * len(classes)
    position = 0
    for low, _, count in histogram.buckets():
        while low >= classes[position][2]:
            position += 1
        counts[position] += count
    result: dict[str, dict[str, float]] = {}
    for (group, key, _), count in zip(classes, counts, strict=True):
        result.setdefault(group, {})[key] = _percent(count, histogram.count)
    return result


def job(
    name: str, part: Mapping[str, Any], cpu: Mapping[str, float], options: Mapping[str, str]
) -> dict[str, Any]:
    """One entry of `jobs`: a workload on one image, all its queues together.

    `part` is what `measure` gathers for it; `cpu` its share of the process's: user and system seconds,
    context switches and page faults.
    """
    seconds = part["seconds"]
    reads, writes, flushes, discards = (
        Histogram.from_dict(part[f"{kind}_latency"]) for kind in ("read", "write", "flush", "discard")
    )
    return {
        "jobname": name,
        "groupid": 0,
        "error": part["error_errno"],
        "eta": 0,
        "elapsed": max(1, round(seconds)),
        "job options": dict(options),
        "read": direction(part["reads"], part["bytes_read"], seconds, reads),
        "write": direction(part["writes"], part["bytes_written"], seconds, writes),
        "trim": direction(part["discards"], part["bytes_discarded"], seconds, discards),
        "sync": {"total_ios": part["flushes"], "lat_ns": latency(flushes, percentiles=True)},
        "job_runtime": round(seconds * 1000),
        "usr_cpu": round(100.0 * cpu["user"] / seconds, 6) if seconds else 0.0,
        "sys_cpu": round(100.0 * cpu["system"] / seconds, 6) if seconds else 0.0,
        "ctx": round(cpu["switches"]),
        "majf": round(cpu["major_faults"]),
        "minf": round(cpu["minor_faults"]),
        "iodepth_level": depth_levels(part["depth"]),
        **latency_classes(merged([reads, writes])),
        "latency_depth": part["iodepth"],
        "latency_target": 0,
        "latency_percentile": 100.0,
        "latency_window": 0,
    }


def _percent(count: int, total: int) -> float:
    return round(100.0 * count / total, 6) if total else 0.0
