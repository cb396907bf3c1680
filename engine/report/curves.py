"""Line charts of a result: rate and latency against a swept number, and latency against the percentile.

A swept number that spans a factor of 8 or more, and every latency, has a logarithmic axis; percentiles are
spread so that each further nine takes the same room.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.report import figures
from engine.report.rows import Row, column_name, read_rows
from engine.report.svg import Canvas, fit, text_width

WIDTH, HEIGHT = 960.0, 400.0
SERIES_MAX = 12  # more lines are not told apart
_LEFT, _TOP, _BOTTOM = 86.0, 76.0, 52.0
_LEGEND_MAX = 360.0
_INK, _SOFT, _FAINT = "#1f2328", "#59636e", "#e4e8ec"
_COLOURS = ("#2563c9", "#d4622a", "#12886b", "#a03f9a", "#8a6d1a", "#4b5563")
_DASHES = (None, "6 3", "2 2")
_PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axis:
    """Where a value lies between 0 and 1, and what stands beside it."""

    title: str
    place: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]


def charts(data: Mapping[str, Any]) -> list[str]:
    """SVG of each chart that the result has something for."""
    return [canvas.render() for canvas in compose(data)]


def compose(data: Mapping[str, Any]) -> list[Canvas]:
    found = []
    if key := _numeric_key(data):
        rate = _against(data, key, "iops")
        latency = _against(data, key, "latency_p99_ns")
        axis = _number_axis(column_name(key), [x for series in rate for x, _ in series.points])
        if rate:
            found.append(_chart(f"IOPS against {column_name(key)}", axis, _rate_axis(rate), rate))
        if latency:
            found.append(
                _chart(f"p99 latency against {column_name(key)}", axis, _latency_axis(latency), latency)
            )
    if curves := _percentile_curves(data):
        found.append(_chart("Latency by percentile", _percentile_axis(), _latency_axis(curves), curves))
    return found


# ---- what is drawn


def _numeric_key(data: Mapping[str, Any]) -> str | None:
    """The last swept key whose values are numbers, at least three of them."""
    for key in reversed(data["plan"]["sweep"]):
        values = {point["settings"].get(key) for point in data["points"] if not point["mark"]}
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0]
        if len(numbers) >= 3 and len(numbers) == len(values):
            return str(key)
    return None


def _against(data: Mapping[str, Any], key: str, figure: str) -> list[Series]:
    lines: dict[str, list[Point]] = {}
    for point in data["points"]:
        summary = point["summary"]
        if point["mark"] or not summary or not summary.get(figure) or summary[figure]["median"] <= 0:
            continue
        label = " · ".join(text for other, text in point["labels"].items() if other != key)
        lines.setdefault(label, []).append((float(point["settings"][key]), summary[figure]["median"]))
    return [Series(label, tuple(sorted(points))) for label, points in lines.items()][:SERIES_MAX]


def _percentile_curves(data: Mapping[str, Any]) -> list[Series]:
    """The median over a point's runs of each percentile; the busier direction of its first job."""
    found = []
    for row, point in _points(data):
        curves = [curve for run in data["runs"] if _counts(run, point) and (curve := _curve(run))]
        if not curves:
            continue
        median: list[Point] = []
        for percentile in sorted(set.intersection(*(set(curve) for curve in curves))):
            values = sorted(curve[percentile] for curve in curves)
            if percentile >= 50 and values[len(values) // 2] > 0:
                median.append((percentile, values[len(values) // 2]))
        label = " · ".join([*row.labels.values(), *([row.mark] if row.mark else [])])
        found.append(Series(label, tuple(median)))
    return found[:SERIES_MAX]


def _points(data: Mapping[str, Any]) -> list[tuple[Row, int]]:
    indices = {
        (tuple(point["labels"].items()), point["mark_label"] if point["mark"] else None): point["index"]
        for point in data["points"]
    }
    return [(row, indices[tuple(row.labels.items()), row.mark]) for row in read_rows(data)]


def _counts(run: Mapping[str, Any], point: int) -> bool:
    return run["point"] == point and not run["discarded"]


def _curve(run: Mapping[str, Any]) -> dict[float, float]:
    job = run["record"]["jobs"][0]
    way = max(("read", "write"), key=lambda name: job[name]["total_ios"])
    return {float(p): float(v) for p, v in job[way]["clat_ns"].get("percentile", {}).items()}


# ---- axes


def _number_axis(title: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    ticks = tuple((value, figures.round_count(value)) for value in sorted(set(values)))
    if high / low >= 8:
        return Axis(title, lambda x: math.log(x / low) / math.log(high / low), ticks)
    return Axis(title, lambda x: (x - low) / (high - low), ticks)


def _rate_axis(series: Sequence[Series]) -> Axis:
    """From zero, unless that would press some lines flat."""
    values = [y for line in series for _, y in line.points]
    highest = max(values)
    if highest / min(values) >= 30:
        return _decades("IOPS", values, figures.round_count)
    step = 10 ** math.floor(math.log10(highest))
    step *= next(factor for factor in (0.2, 0.5, 1.0, 2.0) if highest / (step * factor) <= 6)
    top = math.ceil(highest / step) * step
    ticks = tuple((n * step, figures.round_count(n * step)) for n in range(round(top / step) + 1))
    return Axis("IOPS", lambda y: y / top, ticks)


def _latency_axis(series: Sequence[Series]) -> Axis:
    return _decades("latency", [y for line in series for _, y in line.points], figures.duration_ns)


def _decades(title: str, values: Sequence[float], write: Callable[[float], str]) -> Axis:
    low, high = 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values)))
    decades = max(round(math.log10(high / low)), 1)
    ticks = tuple((low * 10**n, write(low * 10**n)) for n in range(decades + 1))
    return Axis(title, lambda y: math.log10(y / low) / decades, ticks)


def _percentile_axis() -> Axis:
    def place(percentile: float) -> float:
        return -math.log10(1 - percentile / 100) / 4

    low = place(_PERCENTILES[0])
    ticks = tuple((p, f"{p:g} %") for p in _PERCENTILES)
    return Axis("percentile of all requests", lambda p: (place(p) - low) / (1 - low), ticks)


# ---- drawing


def _chart(title: str, across: Axis, up: Axis, series: Sequence[Series]) -> Canvas:
    canvas = Canvas(WIDTH, title, f"{title}: {', '.join(line.label or 'all' for line in series)}")
    canvas.height = HEIGHT
    legend = 0.0
    if any(line.label for line in series):
        legend = min(66 + max(text_width(line.label or "all", 12.5) for line in series), _LEGEND_MAX)
    left, right = _LEFT, WIDTH - (legend or 40.0)
    top, bottom = _TOP, HEIGHT - _BOTTOM
    canvas.text(28, 36, title, 17, fill=_INK, bold=True)

    def at(point: Point) -> Point:
        x, y = point
        return left + across.place(x) * (right - left), bottom - up.place(y) * (bottom - top)

    for value, text in up.ticks:
        y = bottom - up.place(value) * (bottom - top)
        canvas.line((left, y), (right, y), _FAINT)
        canvas.text(left - 8, y + 4, text, 12, fill=_SOFT, anchor="end")
    free = -math.inf  # where the next label may begin
    for value, text in across.ticks:
        x = left + across.place(value) * (right - left)
        canvas.line((x, bottom), (x, bottom + 5), _SOFT)
        half = text_width(text, 12) / 2
        if x - half >= free:
            canvas.text(x, bottom + 19, text, 12, fill=_SOFT, anchor="middle")
            free = x + half + 6
    canvas.text((left + right) / 2, HEIGHT - 12, across.title, 12.5, fill=_INK, anchor="middle")
    canvas.text(28, top - 14, up.title, 12.5, fill=_INK)
    for number, line in enumerate(series):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number // len(_COLOURS)]
        places = [at(point) for point in line.points]
        for start, end in itertools.pairwise(places):
            canvas.line(start, end, colour, 2.0, dash)
        for x, y in places:
            canvas.circle(x, y, 3.0, "#ffffff", colour)
        if legend:
            y = top + 8 + 22 * number
            canvas.line((right + 18, y), (right + 44, y), colour, 2.0, dash)
            label = fit(line.label or "all", 12.5, legend - 60)
            canvas.text(right + 52, y + 4, label, 12.5, fill=_INK)
    return canvas
