"""Pictures in colour: rates over contexts and depth, and where latencies lay while time went by.

Darker is more. Each map has its scale beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.experiment import answers
from engine.experiment.series import COARSER
from engine.histogram import bucket_of, low_of
from engine.report import figures
from engine.report.chart import INK, SOFT, WIDTH, time_ticks
from engine.report.rows import column_name
from engine.report.svg import Canvas, fit, text_width

_LEFT, _TOP = 110.0, 84.0
_CELL_HEIGHT, _CELL_MAX = 34.0, 150.0
_SCALE = 130.0  # to the right of a map
_LIGHT, _DARK = (238, 244, 252), (24, 62, 138)
MAPS_MAX = 4  # of rates
_STEPS = 5  # of the scale that is shown
_HEAT_HEIGHT = 260.0


def colour(share: float) -> str:
    """From light (0) to dark (1)."""
    clipped = min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(a + (b - a) * clipped):02x}" for a, b in zip(_LIGHT, _DARK, strict=True))


def rate_maps(data: Mapping[str, Any]) -> list[Canvas]:
    """IOPS by number of contexts and depth, one map for each combination of the other axes, at most four."""
    depth = next((key for key in data["plan"]["sweep"] if key.endswith(".iodepth")), None)
    contexts = answers.scaling_key(data)
    if depth is None or contexts is None or depth == contexts:
        return []
    maps: dict[str, dict[tuple[int, int], float]] = {}
    for points in answers.groups(data, contexts).values():
        for point in points:
            rest = [text for key, text in point["labels"].items() if key not in (depth, contexts)]
            cell = (answers.contexts_of(point), int(point["settings"][depth]))
            maps.setdefault(" · ".join(rest), {})[cell] = answers.median(point, "iops") or 0.0
    big = {name: cells for name, cells in maps.items() if len({depth for _, depth in cells}) >= 2}
    found = [_rate_map(name, cells, column_name(depth)) for name, cells in list(big.items())[:MAPS_MAX]]
    if len(big) > MAPS_MAX:
        more = figures.plural(len(big) - MAPS_MAX, "more map")
        found[-1].text(
            28, found[-1].height + 2, f"{more} not drawn: the table has all figures", 11, fill=SOFT
        )
        found[-1].height += 16
    return found


def _rate_map(name: str, cells: Mapping[tuple[int, int], float], depth: str) -> Canvas:
    most = max(cells.values())  # each map has a scale of its own: a slow node's would be pale all over
    title = f"IOPS by contexts and {depth}" + (f": {name}" if name else "")
    canvas = Canvas(WIDTH, title, f"{title}; darker is more")
    columns = sorted({column for _, column in cells})
    rows = sorted({row for row, _ in cells})
    width = min((WIDTH - _LEFT - _SCALE - 20) / len(columns), _CELL_MAX)
    canvas.text(28, 36, fit(title, 17, WIDTH - 56, bold=True), 17, fill=INK, bold=True)
    canvas.text(28, _TOP - 14, "contexts", 12.5, fill=INK)
    for number, row in enumerate(rows):
        y = _TOP + number * _CELL_HEIGHT
        canvas.text(_LEFT - 10, y + _CELL_HEIGHT / 2 + 4, str(row), 12, fill=SOFT, anchor="end")
        for place, column in enumerate(columns):
            value = cells.get((row, column))
            if value is None:
                continue
            x, share = _LEFT + place * width, value / most if most else 0.0
            canvas.rect(x + 1, y + 1, width - 2, _CELL_HEIGHT - 2, colour(share), radius=2)
            text = figures.count(value)
            if text_width(text, 11) <= width - 6:
                ink = "#ffffff" if share > 0.55 else INK
                canvas.text(x + width / 2, y + _CELL_HEIGHT / 2 + 4, text, 11, fill=ink, anchor="middle")
    bottom = _TOP + len(rows) * _CELL_HEIGHT
    _ticks_below(canvas, [(_LEFT + (n + 0.5) * width, str(c)) for n, c in enumerate(columns)], bottom)
    canvas.text(_LEFT + len(columns) * width / 2, bottom + 42, depth, 12.5, fill=INK, anchor="middle")
    texts = [figures.round_count(most * n / 4) for n in range(_STEPS)]
    _scale(canvas, _LEFT + len(columns) * width + 24, _TOP, "IOPS", texts)
    canvas.height = max(bottom + 56, _TOP + _STEPS * 20 + 16)
    return canvas


def heat_map(title: str, slices: Sequence[Mapping[str, Any]], job: str) -> Canvas | None:
    """Of one run: each column a slice of time, each row a bucket of latencies, the share of its requests."""
    columns = [(one, one["jobs"][job]["latency"]) for one in slices if job in one["jobs"]]
    lows = sorted({low for _, pairs in columns for low, count in pairs if low > 0})
    if len(columns) < 2 or len(lows) < 2:
        return None
    canvas = Canvas(WIDTH, title, f"{title}: share of each slice's requests; darker is more")
    canvas.text(28, 36, fit(title, 17, WIDTH - 56, bold=True), 17, fill=INK, bold=True)
    canvas.text(28, _TOP - 14, "latency", 12.5, fill=INK)
    lowest, highest = math.log(lows[0]), math.log(_end_of(lows[-1]))
    end, right = columns[-1][0]["end"], WIDTH - _SCALE
    bottom = _TOP + _HEAT_HEIGHT

    def at(low: float) -> float:
        return bottom - (math.log(low) - lowest) / (highest - lowest) * _HEAT_HEIGHT

    for one, pairs in columns:
        total = sum(count for _, count in pairs)
        x = _LEFT + (one["end"] - one["seconds"]) / end * (right - _LEFT)
        width = one["seconds"] / end * (right - _LEFT)
        for low, count in pairs:
            if low <= 0 or not count:
                continue
            # One request in a million is still seen.
            share = 1 + math.log10(count / total) / 6
            top = at(_end_of(low))
            canvas.rect(x, top, max(width - 0.5, 0.5), at(low) - top, colour(max(share, 0.08)))
    decade = 10.0 ** math.ceil(math.log10(lows[0]))
    while decade <= _end_of(lows[-1]):
        canvas.text(_LEFT - 10, at(decade) + 4, figures.round_duration(decade), 12, fill=SOFT, anchor="end")
        decade *= 10
    ticks = [(_LEFT + when / end * (right - _LEFT), text) for when, text in time_ticks(end)]
    _ticks_below(canvas, ticks, bottom)
    canvas.text((_LEFT + right) / 2, bottom + 42, "time", 12.5, fill=INK, anchor="middle")
    _scale(canvas, right + 24, _TOP, "of its requests", ["1 ppm", "32 ppm", "0.1 %", "3 %", "100 %"])
    canvas.height = bottom + 56
    return canvas


def _ticks_below(canvas: Canvas, ticks: Sequence[tuple[float, str]], bottom: float) -> None:
    """Where there is room."""
    free = -math.inf
    for x, text in ticks:
        half = text_width(text, 12) / 2
        if x - half >= free:
            canvas.text(x, bottom + 20, text, 12, fill=SOFT, anchor="middle")
            free = x + half + 6


def _end_of(low: int) -> int:
    """Where the bucket of a slice that begins there ends."""
    return low_of(bucket_of(low) + (1 << COARSER))


def _scale(canvas: Canvas, x: float, y: float, title: str, texts: Sequence[str]) -> None:
    canvas.text(x, y - 14, title, 11, fill=SOFT)
    for number, text in enumerate(texts):
        canvas.rect(x, y + number * 20, 14, 18, colour(number / (len(texts) - 1)), radius=2)
        canvas.text(x + 22, y + number * 20 + 13, text, 11.5, fill=SOFT)
