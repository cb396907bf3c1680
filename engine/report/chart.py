"""A chart of lines: axes, series, a legend beside them. Shared by all charts of a report.

A number that spans a factor of 8 or more, and every latency, has a logarithmic axis; percentiles are spread
so that each further nine takes the same room.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.report import figures
from engine.report.svg import Canvas, fit, text_width

WIDTH, HEIGHT = 960.0, 400.0
_LEFT, _TOP, _BOTTOM = 86.0, 76.0, 52.0
_LEGEND_MAX = 360.0
MARKS_MAX = 100  # circles of a line; more would be a thick line
INK, SOFT, FAINT = "#1f2328", "#59636e", "#e4e8ec"
# Told apart by people with any colour vision, in this order.
COLOURS = ("#2563c9", "#d4622a", "#12886b", "#a03f9a", "#8a6d1a", "#4b5563")
_DASHES = (None, "6 3", "2 2")
_PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    label: str
    points: tuple[Point, ...]
    marks: bool = True  # a circle at each point; without, the line is a thin one
    colour: int | None = None  # None: the next one


@dataclass(frozen=True)
class Axis:
    """Where a value lies between 0 and 1, and what stands beside it."""

    title: str
    place: Callable[[float], float]
    ticks: tuple[tuple[float, str], ...]


# ---- axes


def number_axis(title: str, values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    ticks = tuple((value, figures.round_count(value)) for value in sorted(set(values)))
    if low == high:
        return Axis(title, lambda x: 0.5, ticks)
    if high / low >= 8:
        return Axis(title, lambda x: math.log(x / low) / math.log(high / low), ticks)
    return Axis(title, lambda x: (x - low) / (high - low), ticks)


def rate_axis(series: Sequence[Series]) -> Axis:
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


def latency_axis(series: Sequence[Series]) -> Axis:
    return _decades("latency", [y for line in series for _, y in line.points], figures.round_duration)


def microsecond_axis(series: Sequence[Series]) -> Axis:
    """From zero."""
    highest = max(y for line in series for _, y in line.points)
    step = 10.0 ** math.floor(math.log10(highest))
    step *= next(factor for factor in (0.2, 0.5, 1.0, 2.0) if highest / (step * factor) <= 6)
    top = math.ceil(highest / step) * step
    ticks = tuple((n * step, f"{figures.three_digits(n * step)} µs") for n in range(round(top / step) + 1))
    return Axis("CPU time", lambda y: y / top, ticks)


def time_axis(seconds: float) -> Axis:
    return Axis("time", lambda x: x / seconds, time_ticks(seconds))


def time_ticks(seconds: float) -> tuple[tuple[float, str], ...]:
    """Round times from 0 on, up to eight of them."""
    step = 10.0 ** math.floor(math.log10(seconds))
    step *= next(factor for factor in (0.2, 0.5, 1.0, 2.0) if seconds / (step * factor) <= 7)
    return tuple((n * step, f"{n * step:g} s") for n in range(math.floor(seconds / step + 1e-9) + 1))


def _decades(title: str, values: Sequence[float], write: Callable[[float], str]) -> Axis:
    low, high = 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values)))
    decades = max(round(math.log10(high / low)), 1)
    ticks = tuple((low * 10**n, write(low * 10**n)) for n in range(decades + 1))
    return Axis(title, lambda y: math.log10(y / low) / decades, ticks)


def percentile_axis() -> Axis:
    def place(percentile: float) -> float:
        return -math.log10(1 - percentile / 100) / 4

    low = place(_PERCENTILES[0])
    ticks = tuple((p, f"{p:g} %") for p in _PERCENTILES)
    return Axis("percentile of all requests", lambda p: (place(p) - low) / (1 - low), ticks)


# ---- drawing


def draw(title: str, across: Axis, up: Axis, series: Sequence[Series], left_out: int = 0) -> Canvas:
    """`left_out`: how many more lines there were; too many to be told apart."""
    canvas = Canvas(WIDTH, title, f"{title}: {', '.join(line.label or 'all' for line in series)}")
    canvas.height = HEIGHT
    legend = 0.0
    if any(line.label for line in series):
        widest = max(text_width(line.label or "all", 12.5) for line in series)
        legend = min(66 + max(widest, 90.0 if left_out else 0.0), _LEGEND_MAX)
    left, right = _LEFT, WIDTH - (legend or 40.0)
    top, bottom = _TOP, HEIGHT - _BOTTOM
    canvas.text(28, 36, title, 17, fill=INK, bold=True)

    def at(point: Point) -> Point:
        x, y = point
        return left + across.place(x) * (right - left), bottom - up.place(y) * (bottom - top)

    for value, text in up.ticks:
        y = bottom - up.place(value) * (bottom - top)
        canvas.line((left, y), (right, y), FAINT)
        canvas.text(left - 8, y + 4, text, 12, fill=SOFT, anchor="end")
    free = -math.inf  # where the next label may begin
    for value, text in across.ticks:
        x = left + across.place(value) * (right - left)
        canvas.line((x, bottom), (x, bottom + 5), SOFT)
        half = text_width(text, 12) / 2
        if x - half >= free:
            canvas.text(x, bottom + 19, text, 12, fill=SOFT, anchor="middle")
            free = x + half + 6
    canvas.text((left + right) / 2, HEIGHT - 12, across.title, 12.5, fill=INK, anchor="middle")
    canvas.text(28, top - 14, up.title, 12.5, fill=INK)
    following = itertools.count()
    for number, line in enumerate(series):
        place = next(following) if line.colour is None else line.colour
        colour, dash = COLOURS[place % len(COLOURS)], _DASHES[place // len(COLOURS)]
        if not line.marks:
            dash = "2 3"
        places = [at(point) for point in line.points]
        if len(places) > 1:
            canvas.polyline(places, colour, 2.0 if line.marks else 1.2, dash)
        for x, y in places if line.marks and len(places) <= MARKS_MAX else ():
            canvas.circle(x, y, 3.0, "#ffffff", colour)
        if legend:
            y = top + 8 + 22 * number
            canvas.line((right + 18, y), (right + 44, y), colour, 2.0 if line.marks else 1.2, dash)
            label = fit(line.label or "all", 12.5, legend - 60)
            canvas.text(right + 52, y + 4, label, 12.5, fill=INK)
    if left_out:
        y = top + 12 + 22 * len(series)
        canvas.text(right + 18, y, f"{left_out} more not drawn", 11, fill=SOFT)
    return canvas
