"""What happened while runs went on: the rate of each point, and percentiles and a heat map of the busiest.

One run of each point, the first that counts; runs of fewer than three whole slices have nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.experiment.series import rates
from engine.report.chart import Series, draw, latency_axis, rate_axis, time_axis
from engine.report.curves import SERIES_MAX
from engine.report.maps import heat_map
from engine.report.svg import Canvas

SLICES_LEAST = 3  # whole ones
POINTS_MAX = 500  # of a line; and of a heat map, which has many cells in each column:
COLUMNS_MAX = 120


def over_time(data: Mapping[str, Any]) -> list[Canvas]:
    shown = _first_runs(data)
    if not shown:
        return []
    lines = [Series(title, tuple(rates(joined(slices, POINTS_MAX)))) for title, slices in shown]
    lines = [
        line for line in lines if len(line.points) >= SLICES_LEAST and min(y for _, y in line.points) > 0
    ]
    found = []
    if lines:
        drawn = lines[:SERIES_MAX]
        axis = time_axis(max(x for line in drawn for x, _ in line.points))
        found.append(draw("IOPS over time", axis, rate_axis(drawn), drawn, len(lines) - len(drawn)))
    title, slices = max(shown, key=lambda each: sum(rate for _, rate in rates(each[1])) / len(each[1]))
    job = max(slices[0]["jobs"], key=lambda name: _requests(slices, name))
    thinned = joined(slices, POINTS_MAX)
    percentiles = [
        Series(
            name,
            tuple(
                (one["end"], float(value))
                for one in thinned
                if job in one["jobs"] and (value := one["jobs"][job][key]) > 0
            ),
        )
        for key, name in (("p50", "p50"), ("p99", "p99"), ("max", "slowest"))
    ]
    percentiles = [line for line in percentiles if len(line.points) >= SLICES_LEAST]
    of = f": {title}" if title else ""
    if percentiles:
        axis = time_axis(slices[-1]["end"])
        found.append(draw(f"Latency over time{of}", axis, latency_axis(percentiles), percentiles))
    if (heat := heat_map(f"Latencies over time{of}", joined(slices, COLUMNS_MAX), job)) is not None:
        found.append(heat)
    return found


def joined(slices: Sequence[Mapping[str, Any]], most: int) -> Sequence[Mapping[str, Any]]:
    """As they are, or so many neighbours as one that there are no more than `most`: counts are added up, of
    percentiles the worst stands."""
    each = math.ceil(len(slices) / most)
    if each <= 1:
        return slices
    return [_join(slices[start : start + each]) for start in range(0, len(slices), each)]


def _join(slices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    jobs: dict[str, dict[str, Any]] = {}
    for one in slices:
        for name, job in one["jobs"].items():
            own = jobs.setdefault(
                name, {"reads": 0, "writes": 0, "p50": 0, "p99": 0, "max": 0, "latency": {}}
            )
            for key in ("reads", "writes"):
                own[key] += job[key]
            for key in ("p50", "p99", "max"):
                own[key] = max(own[key], job[key])
            for low, count in job["latency"]:
                own["latency"][low] = own["latency"].get(low, 0) + count
    for own in jobs.values():
        own["latency"] = sorted([low, count] for low, count in own["latency"].items())
    return {"end": slices[-1]["end"], "seconds": sum(one["seconds"] for one in slices), "jobs": jobs}


def _first_runs(data: Mapping[str, Any]) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    found: dict[int, tuple[str, Sequence[Mapping[str, Any]]]] = {}
    for run in data["runs"]:
        slices = run["record"]["engine"].get("series", [])
        slices = slices[: len(rates(slices))]  # without a last one that is short
        if run["discarded"] or run["point"] in found or len(slices) < SLICES_LEAST:
            continue
        found[run["point"]] = data["points"][run["point"]]["title"], slices
    return list(found.values())


def _requests(slices: Sequence[Mapping[str, Any]], job: str) -> int:
    return sum(one["jobs"][job]["reads"] + one["jobs"][job]["writes"] for one in slices if job in one["jobs"])
