"""What happened while runs went on: the rate of each point, and percentiles and a heat map of the busiest.

One run of each point, the first that counts; runs of fewer than three whole slices have nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.experiment.series import rates
from engine.report.chart import Series, draw, latency_axis, rate_axis, time_axis
from engine.report.curves import SERIES_MAX
from engine.report.maps import heat_map
from engine.report.svg import Canvas

SLICES_LEAST = 3  # whole ones


def over_time(data: Mapping[str, Any]) -> list[Canvas]:
    shown = _first_runs(data)
    if not shown:
        return []
    lines = [Series(title, tuple(rates(slices))) for title, slices in shown]
    lines = [
        line for line in lines if len(line.points) >= SLICES_LEAST and min(y for _, y in line.points) > 0
    ]
    found = []
    if lines:
        axis = time_axis(max(x for line in lines for x, _ in line.points))
        found.append(draw("IOPS over time", axis, rate_axis(lines), lines[:SERIES_MAX]))
    title, slices = max(shown, key=lambda each: sum(rate for _, rate in rates(each[1])) / len(each[1]))
    job = max(slices[0]["jobs"], key=lambda name: _requests(slices, name))
    percentiles = [
        Series(
            name, tuple((one["end"], float(value)) for one in slices if (value := one["jobs"][job][key]) > 0)
        )
        for key, name in (("p50", "p50"), ("p99", "p99"), ("max", "slowest"))
    ]
    percentiles = [line for line in percentiles if len(line.points) >= SLICES_LEAST]
    of = f": {title}" if title else ""
    if percentiles:
        axis = time_axis(slices[-1]["end"])
        found.append(draw(f"Latency over time{of}", axis, latency_axis(percentiles), percentiles))
    if (heat := heat_map(f"Latencies over time{of}", slices, job)) is not None:
        found.append(heat)
    return found


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
