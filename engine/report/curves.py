"""Line charts of a result: rate and latency against a swept number, and latency against the percentile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.experiment.answers import groups, median
from engine.report.chart import (
    Axis,
    Point,
    Series,
    draw,
    latency_axis,
    number_axis,
    percentile_axis,
    rate_axis,
)
from engine.report.rows import Row, column_name, read_rows
from engine.report.svg import Canvas

SERIES_MAX = 12  # more lines are not told apart


def compose(data: Mapping[str, Any]) -> list[Canvas]:
    found = []
    if key := _numeric_key(data):
        rate = _against(data, key, "iops")
        latency = _against(data, key, "latency_p99_ns")
        axis = number_axis(column_name(key), [x for series in rate for x, _ in series.points])
        if rate:
            found.append(_lines(f"IOPS against {column_name(key)}", axis, rate_axis, rate))
        if latency:
            found.append(_lines(f"p99 latency against {column_name(key)}", axis, latency_axis, latency))
    if curves := _percentile_curves(data):
        found.append(_lines("Latency by percentile", percentile_axis(), latency_axis, curves))
    return found


def _lines(
    title: str, across: Axis, up: Callable[[Sequence[Series]], Axis], lines: Sequence[Series]
) -> Canvas:
    """As many as can be told apart, and how many more there were."""
    shown = lines[:SERIES_MAX]
    return draw(title, across, up(shown), shown, len(lines) - len(shown))


# ---- what is drawn


def _numeric_key(data: Mapping[str, Any]) -> str | None:
    """The last swept key whose values are numbers, at least three of them."""
    for key in reversed(data["plan"]["sweep"]):
        values = [point["settings"].get(key) for point in data["points"] if not point["mark"]]
        if key.endswith(".rate-iops"):
            values = [value for value in values if value != 0]  # the closed loop
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0]
        if len(set(numbers)) >= 3 and len(numbers) == len(values):
            return str(key)
    return None


def _against(data: Mapping[str, Any], key: str, figure: str) -> list[Series]:
    found = []
    for label, points in groups(data, key).items():
        line = sorted(
            (float(point["settings"][key]), value)
            for point in points
            if point["settings"][key] > 0 and (value := median(point, figure) or 0.0) > 0
        )
        if line:
            found.append(Series(label, tuple(line)))
    return found


def _percentile_curves(data: Mapping[str, Any]) -> list[Series]:
    """The median over a point's runs of each percentile; of each workload, its busier direction."""
    found = []
    for row, point in _points(data):
        runs = [run for run in data["runs"] if _counts(run, point)]
        names = [job["jobname"] for job in runs[0]["record"]["jobs"]] if runs else []
        for number, name in enumerate(names):
            curves = [curve for run in runs if (curve := _curve(run["record"]["jobs"][number]))]
            if not curves:
                continue
            middle: list[Point] = []
            for percentile in sorted(set.intersection(*(set(curve) for curve in curves))):
                values = sorted(curve[percentile] for curve in curves)
                if percentile >= 50 and values[len(values) // 2] > 0:
                    middle.append((percentile, values[len(values) // 2]))
            own = [name] if len(names) > 1 else []
            label = " · ".join([*row.labels.values(), *([row.mark] if row.mark else []), *own])
            found.append(Series(label, tuple(middle)))
    return found


def _points(data: Mapping[str, Any]) -> list[tuple[Row, int]]:
    indices = {
        (tuple(point["labels"].items()), point["mark_label"] if point["mark"] else None): point["index"]
        for point in data["points"]
    }
    return [(row, indices[tuple(row.labels.items()), row.mark]) for row in read_rows(data)]


def _counts(run: Mapping[str, Any], point: int) -> bool:
    return run["point"] == point and not run["discarded"]


def _curve(job: Mapping[str, Any]) -> dict[float, float]:
    way = max(("read", "write"), key=lambda name: job[name]["total_ios"])
    return {float(p): float(v) for p, v in job[way]["clat_ns"].get("percentile", {}).items()}
