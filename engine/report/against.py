"""Two results held against each other: every run as a dot, and the interval of the ratio of medians.

All of a point is shown relative to the median of A's runs of that point, so that points of any rate share one
axis and 100 % is "as fast as A".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from engine.experiment.compare import CONFIDENCE, RESAMPLES, RUNS_LEAST, SEED, Comparison, Difference
from engine.experiment.results import Results
from engine.report import figures
from engine.report.chart import COLOURS, FAINT, INK, SOFT, WIDTH
from engine.report.page import circumstances, document, preformatted, table_of
from engine.report.picture import machine_lines, settings_lines
from engine.report.svg import Canvas, fit, text_width, wrap

ROWS_MAX = 60
_MARGIN, _ROW, _LABEL_LIMIT, _SIZE = 28.0, 40.0, 250.0, 12.5
_COLUMNS = (("A: IOPS", 70.0), ("B: IOPS", 70.0), ("B ÷ A", 56.0), ("interval", 136.0))
_SLOWER, _FASTER, _SAME = COLOURS[1], COLOURS[2], "#8b949e"
_SPAN_FOR_LOGARITHM = 4.0


@dataclass(frozen=True)
class _Scale:
    """Where a rate relative to A's lies on the axis."""

    low: float
    high: float
    left: float
    right: float

    def place(self, value: float) -> float:
        if self.high / self.low >= _SPAN_FOR_LOGARITHM:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.left + min(max(share, 0.0), 1.0) * (self.right - self.left)

    def ticks(self) -> list[float]:
        if self.high / self.low >= _SPAN_FOR_LOGARITHM:
            powers = range(math.ceil(math.log2(self.low)), math.floor(math.log2(self.high)) + 1)
            every = max(1, math.ceil(len(powers) / 8))
            return [2.0**power for power in powers if power % every == 0]
        step = next(
            10.0**power * factor
            for power in range(-4, 1)
            for factor in (1.0, 2.0, 5.0)
            if (self.high - self.low) / (10.0**power * factor) <= 8
        )
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def draw(found: Comparison, a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """SVG; `a` and `b` are the data of the results, as `engine run` keeps them."""
    return compose(found, a, b).render()


def compose(found: Comparison, a: Mapping[str, Any], b: Mapping[str, Any]) -> Canvas:
    shown = found.differences[:ROWS_MAX]
    canvas = Canvas(WIDTH, "A against B", _description(shown))
    y = _heading(canvas, found, a, b)
    if not shown:
        canvas.text(_MARGIN, y + 20, "the results have no point in common", 13, fill=SOFT)
        y += 30
    else:
        y = _rows(canvas, shown, y)
    canvas.height = _footer(canvas, found, y + 22)
    return canvas


def _description(shown: Sequence[Difference]) -> str:
    """For those who do not see the picture."""
    return "; ".join(
        f"{each.title}: B has {_ratio(each.ratio)} of A's rate ({_interval(each)})" for each in shown
    )


def _heading(canvas: Canvas, found: Comparison, a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    y = 42.0
    for part in wrap(_title(a, b), 20, WIDTH - 2 * _MARGIN, bold=True):
        canvas.text(_MARGIN, y, part, 20, bold=True)
        y += 26
    y -= 4
    lines_a, lines_b = ([*settings_lines(each), *machine_lines(each)] for each in (a, b))
    lines = []
    for of_a, of_b in zip(lines_a, lines_b, strict=True):
        lines += [of_a] if of_a == of_b else [f"A: {of_a}", f"B: {of_b}"]
    lines += [f"Not the same: {text}" for text in found.circumstances]
    for line in lines:
        for part in wrap(line, 12, WIDTH - 2 * _MARGIN):
            canvas.text(_MARGIN, y, part, 12, fill=SOFT)
            y += 17
    return y + 6


def _rows(canvas: Canvas, shown: Sequence[Difference], y: float) -> float:
    labels = min(max(text_width(each.title, _SIZE) for each in shown), _LABEL_LIMIT)
    right = WIDTH - _MARGIN - sum(width for _, width in _COLUMNS) - 14
    scale = _scale(shown, _MARGIN + labels + 34, right)
    top = y + 24
    bottom = top + _ROW * len(shown)
    x = right + 14
    for name, width in _COLUMNS:
        x += width
        canvas.text(x, y + 14, name, 11, fill=SOFT, anchor="end")
    free = -math.inf
    for tick in scale.ticks():
        x = scale.place(tick)
        one = math.isclose(tick, 1.0)
        canvas.line((x, top - 2), (x, bottom), INK if one else FAINT)
        text = f"{100 * tick:.4g} %"
        if x - text_width(text, 10.5) / 2 >= free:
            canvas.text(x, bottom + 14, text, 10.5, fill=SOFT, anchor="middle")
            free = x + text_width(text, 10.5) / 2 + 6
    middle = (scale.left + scale.right) / 2
    canvas.text(middle, bottom + 32, "IOPS, of the median of A", 12, fill=INK, anchor="middle")
    for number, difference in enumerate(shown):
        _row(canvas, difference, scale, top + (number + 0.5) * _ROW)
    return bottom + 36


def _scale(shown: Sequence[Difference], left: float, right: float) -> _Scale:
    values = [1.0]
    for each in shown:
        values += [run / each.median_a for run in (*each.runs_a, *each.runs_b)]
        values += [value for value in (each.low, each.high) if value is not None]
    values = [value for value in values if value > 0]
    low, high = min(values), max(values)
    room = max(0.04 * (high - low), 0.005)
    if high / low < _SPAN_FOR_LOGARITHM:
        return _Scale(max(low - room, low / 2), high + room, left, right)
    return _Scale(low / 1.05, high * 1.05, left, right)


def _row(canvas: Canvas, difference: Difference, scale: _Scale, middle: float) -> None:
    colour = _SAME
    if difference.beyond_noise:
        colour = _FASTER if difference.ratio > 1 else _SLOWER
    title = fit(difference.title or "all", _SIZE, _LABEL_LIMIT)
    canvas.text(_MARGIN, middle + 4.5, title, _SIZE, fill=INK)
    for name, offset in (("A", -10.0), ("B", 10.0)):
        canvas.text(scale.left - 8, middle + offset + 3.5, name, 9.5, fill=SOFT, anchor="end")
    if difference.low is not None and difference.high is not None:
        left, right = scale.place(difference.low), scale.place(difference.high)
        canvas.rect(left, middle - 3, max(right - left, 1.0), 6, colour, opacity=0.55, radius=2)
    x = scale.place(difference.ratio)
    canvas.line((x, middle - 6), (x, middle + 6), colour, 2.4)
    for runs, offset, fill in ((difference.runs_a, -10.0, "#ffffff"), (difference.runs_b, 10.0, INK)):
        for run in runs:
            canvas.circle(
                scale.place(run / difference.median_a),
                middle + offset,
                2.6,
                fill,
                INK if fill != INK else "#ffffff",
            )
    cells = (
        figures.count(difference.median_a),
        figures.count(difference.median_b),
        _ratio(difference.ratio),
        _interval(difference),
    )
    x = scale.right + 14
    for cell, (name, width) in zip(cells, _COLUMNS, strict=True):
        x += width
        canvas.text(x, middle + 4.5, cell, _SIZE, anchor="end", bold=name == "B ÷ A")


def _footer(canvas: Canvas, found: Comparison, y: float) -> float:
    lines = [
        "Dots are the runs: hollow of A, above; filled of B, below. The line between them is the ratio of "
        f"their medians, the bar its {100 * CONFIDENCE:.0f} % interval: bootstrap, percentiles of "
        f"{RESAMPLES} resamples, seed {SEED}; none of fewer than {RUNS_LEAST} runs, and sure from 5 on. "
        "Coloured where it does not hold 100 %: the difference is beyond noise."
    ]
    if len(found.differences) > ROWS_MAX:
        more = figures.plural(len(found.differences) - ROWS_MAX, "point")
        lines.append(f"{more} more: `engine compare` lists them.")
    for name, titles in (("A", found.only_a), ("B", found.only_b)):
        if titles:
            listed = "; ".join(titles[:8]) + ("; …" if len(titles) > 8 else "")
            lines.append(f"Only in {name}: {listed}.")
    for line in lines:
        for part in wrap(line, 11, WIDTH - 2 * _MARGIN):
            canvas.text(_MARGIN, y, part, 11, fill=SOFT)
            y += 16
    return y + 6


def page(found: Comparison, a: Results, b: Results) -> str:
    """The same as HTML that needs nothing else: picture, table, both hosts and experiments."""
    same_text = a.data["experiment"]["text"] == b.data["experiment"]["text"]
    rows = [
        (
            [each.title or "all"],
            [
                f"{len(each.runs_a)} and {len(each.runs_b)}",
                figures.count(each.median_a),
                figures.count(each.median_b),
                _ratio(each.ratio),
                _interval(each),
                _verdict(each),
            ],
        )
        for each in found.differences
    ]
    parts = [
        f"<h1>{escape(_title(a.data, b.data))}</h1>",
        *(
            f'<p class="note">{name}: {escape(str(each.path))}, from {escape(each.data["started"])}.</p>'
            for name, each in (("A", a), ("B", b))
        ),
        *(f'<p class="note">Not the same: {escape(text)}.</p>' for text in found.circumstances),
        f'<div class="wide">{draw(found, a.data, b.data)}</div>',
        "<h2>Figures</h2>",
        table_of(["point"], ["runs", "A: IOPS", "B: IOPS", "B ÷ A", "interval", "beyond noise"], rows),
    ]
    for name, each in (("A", a), ("B", b)):
        parts += [f"<h2>Where {name} was measured</h2>", circumstances(each.data)]
    for name, each in (("", a),) if same_text else (("A", a), ("B", b)):
        parts.append(f"<h2>Experiment{f' of {name}' if name else ''}</h2>")
        parts.append(preformatted(str(each.data["experiment"]["text"]).splitlines()))
    return document(_title(a.data, b.data), parts)


def _title(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    same = a["title"] == b["title"]
    return f"{a['title']}: B against A" if same else f"A: {a['title']} · B: {b['title']}"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if 0.01 <= value < 100 else f"{value:.2g}"


def _interval(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return figures.NONE
    return f"{_ratio(difference.low)} to {_ratio(difference.high)}"


def _verdict(difference: Difference) -> str:
    if difference.low is None:
        return "too few runs"
    if not difference.beyond_noise:
        return "no difference"
    return "faster" if difference.ratio > 1 else "slower"
