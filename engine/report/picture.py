"""The picture of a result: for each panel a block of bars with whiskers and runs, the figures beside them.

The first key of the sweep makes the panels, the last one the bars of a group, those between the groups. A
mark is an outlined bar, and a dashed line through its panel: what the others are held against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.report import figures
from engine.report.chart import COLOURS, FAINT, INK, SOFT, WIDTH
from engine.report.experiment_table import node_is_buffered
from engine.report.rows import Row, read_rows
from engine.report.svg import Canvas, fit, text_width, wrap
from engine.report.workloads import PATTERNS, is_open_loop, recording

_MARGIN = 28.0
_ROW = 27.0  # height of a bar and its gap
_BAR = 18.0
_GROUP_GAP = 7.0
_SIZE = 12.5  # of the text beside the bars
_GROUP_LIMIT, _LABEL_LIMIT = 150.0, 140.0  # longer labels are cut
_COLUMNS = (("IOPS", 74.0), (figures.TIMES, 50.0), ("CPU/request", 92.0), ("lock wait", 76.0))


@dataclass(frozen=True)
class _Bar:
    group: str
    label: str
    colour: str
    strength: float  # of the colour; bars of one group grow stronger
    row: Row


@dataclass(frozen=True)
class _Panel:
    title: str
    bars: tuple[_Bar, ...]


@dataclass(frozen=True)
class _Frame:
    """Columns of the page, the same for all panels."""

    group: float
    label: float
    left: float  # of the bars
    right: float


def draw(data: Mapping[str, Any]) -> str:
    """SVG of a result as `engine run` keeps it."""
    return compose(data).render()


def compose(data: Mapping[str, Any]) -> Canvas:
    panels = _panels(data)
    canvas = Canvas(WIDTH, data["title"], _description(panels))
    y = _heading(canvas, data)
    if not panels:
        canvas.text(_MARGIN, y + 20, "no run has ended", 13, fill=SOFT)
        y += 30
    frame = _frame(panels)
    for number, panel in enumerate(panels):
        y = _panel(canvas, panel, frame, y + (14 if number else 4), head=number == 0)
    canvas.height = _footer(canvas, data, y + 22)
    return canvas


# ---- what is drawn ----


def _panels(data: Mapping[str, Any]) -> list[_Panel]:
    keys: list[str] = list(data["plan"]["sweep"])
    rows = read_rows(data)
    panel_key = keys[0] if len(keys) > 2 else None
    group_keys = keys[1:-1] if panel_key else keys[:-1]
    colours: dict[str, str] = {}
    strengths = _strengths(rows, keys[-1] if keys else None)
    panels: dict[str, list[_Bar]] = {}
    for row in rows:
        title = row.labels.get(panel_key, "") if panel_key else ""
        label = row.labels.get(keys[-1], "") if keys else ""
        if row.mark:
            rest = [row.labels[key] for key in keys if key != panel_key and key in row.labels]
            panels.setdefault(title, []).append(_Bar(row.mark, " · ".join(rest), "", 1.0, row))
            continue
        group = " · ".join(row.labels[key] for key in group_keys)
        colour = colours.setdefault(group, COLOURS[len(colours) % len(COLOURS)])
        panels.setdefault(title, []).append(_Bar(group, label, colour, strengths.get(label, 1.0), row))
    return [_Panel(title, tuple(bars)) for title, bars in panels.items()]


def _strengths(rows: Sequence[Row], key: str | None) -> dict[str, float]:
    labels = list(dict.fromkeys(row.labels[key] for row in rows if key and key in row.labels))
    if len(labels) < 2:
        return {}
    return {label: 0.55 + 0.45 * index / (len(labels) - 1) for index, label in enumerate(labels)}


def _description(panels: Sequence[_Panel]) -> str:
    """For those who do not see the picture."""
    parts = []
    for panel in panels:
        bars = ", ".join(
            f"{' '.join(part for part in (bar.group, bar.label) if part)} "
            f"{figures.count(bar.row.median('iops'))} IOPS"
            for bar in panel.bars
        )
        parts.append(f"{panel.title}: {bars}" if panel.title else bars)
    return "; ".join(parts)


def _frame(panels: Sequence[_Panel]) -> _Frame:
    bars = [bar for panel in panels for bar in panel.bars]
    groups = max((text_width(bar.group, _SIZE) for bar in bars), default=0.0)
    labels = max((text_width(bar.label, _SIZE) for bar in bars), default=0.0)
    label = _MARGIN + (min(groups, _GROUP_LIMIT) + 16 if groups else 0)
    left = label + (min(labels, _LABEL_LIMIT) + 14 if labels else 0)
    right = WIDTH - _MARGIN - sum(width for _, width in _COLUMNS) - 18
    return _Frame(_MARGIN, label, max(left, _MARGIN + 50), right)


# ---- parts of the page ----


def _heading(canvas: Canvas, data: Mapping[str, Any]) -> float:
    y = 42.0
    for part in wrap(data["title"], 20, WIDTH - 2 * _MARGIN, bold=True):
        canvas.text(_MARGIN, y, part, 20, bold=True)
        y += 26
    y -= 4
    for line in (*settings_lines(data), *machine_lines(data)):
        for part in wrap(line, 12, WIDTH - 2 * _MARGIN):
            canvas.text(_MARGIN, y, part, 12, fill=SOFT)
            y += 17
    return y + 6


def settings_lines(data: Mapping[str, Any]) -> list[str]:
    """What all points have in common; where they differ the values are listed."""
    workloads = [w for point in data["points"] for w in point["options"]["workloads"]]
    contexts = [c for point in data["points"] for c in point["options"]["contexts"]]
    loops = ["open loop" if is_open_loop(w) else "closed loop" for w in workloads]
    polls = {c["poll_max_ns"] for c in contexts}
    placed = {c["name"]: c["poll_max_ns"] for c in data["placement"]}
    shown = [placed.get(c["name"], c["poll_max_ns"]) for c in contexts] if None in polls else sorted(polls)
    via = "virtqueue" if any(w["device"] for w in workloads) else "node"
    runtime = " and ".join(dict.fromkeys(f"{w['runtime']:g} s" for w in workloads if w["runtime"]))
    runs = figures.plural(data["plan"]["repeat"], "run")
    each = "queue" if via == "virtqueue" else "generator"
    return [
        f"{_what(workloads)}, iodepth {_each(w['iodepth'] for w in workloads)} per {each}, "
        f"{_each(loops)}, through a {via}; poll_max_ns {_each(shown)}; "
        f"{runs} a bar{f' of {runtime}' if runtime else ''}, interleaved"
        + ("; QUICK: not for quoting" if data["quick"] else "")
    ]


def _what(workloads: Sequence[Mapping[str, Any]]) -> str:
    made = [w for w in workloads if not w.get("replay")]
    parts = [_each(f"replay of {recording(w)}" for w in workloads if w.get("replay"))]
    if made:
        sizes, patterns = (figures.size(w["bs"]) for w in made), (PATTERNS[w["rw"]] for w in made)
        parts.insert(0, f"{_each(sizes)} {_each(patterns)}")
    return ", ".join(part for part in parts if part)


def _each(values: Any) -> str:
    return ", ".join(str(value) for value in dict.fromkeys(values))


def machine_lines(data: Mapping[str, Any]) -> list[str]:
    host, build = data["host"], data["build"]
    kind = "" if build["optimised"] and not build["sanitized"] else ", DEBUG BUILD"
    cpus = figures.plural(len(host["cpus_allowed"]), "CPU")
    guest = " (virtual machine)" if host["virtual_machine"] else ""
    return [
        f"{host['hostname']}: {host['cpu_model']}, {cpus}{guest}, {host['kernel']}; "
        f"engine {build['version']}, {build['compiler']}{kind}, liburing {build['liburing']}; "
        f"{data['started'][:10]}"
    ]


def _panel(canvas: Canvas, panel: _Panel, frame: _Frame, y: float, head: bool) -> float:
    """Draws one panel below `y` and returns its lower edge."""
    top = y + 24
    if panel.title:
        title = fit(panel.title, 14, frame.right - _MARGIN, bold=True)
        canvas.text(_MARGIN, y + 14, title, 14, bold=True)
    if head:
        _column_heads(canvas, frame, y + 14)
    highest = max(max(bar.row.summary["iops"]["max"] for bar in panel.bars), 1.0)
    ticks = nice_ticks(highest)
    scale = (frame.right - frame.left) / max(highest * 1.02, ticks[-1])
    places = _places(panel.bars, top)
    bottom = places[-1] + _ROW / 2 + 2
    for tick in ticks:
        x = frame.left + tick * scale
        canvas.line((x, top - 2), (x, bottom), INK if tick == 0 else FAINT)
        canvas.text(x, bottom + 14, figures.round_count(tick), 10.5, fill=SOFT, anchor="middle")
    canvas.text(frame.left - 14, bottom + 14, "IOPS", 10.5, fill=SOFT, anchor="end")
    for bar in panel.bars:
        if bar.row.mark:
            x = frame.left + bar.row.summary["iops"]["median"] * scale
            canvas.line((x, top - 2), (x, bottom), SOFT, 1.2, "3 3")
    before = None
    for bar, middle in zip(panel.bars, places, strict=True):
        _draw_bar(canvas, bar, frame, middle, scale, bar.group != before)
        before = bar.group
    return bottom + 18


def _places(bars: Sequence[_Bar], top: float) -> list[float]:
    """The middle of each bar; groups stand a little apart."""
    places: list[float] = []
    y = top
    for number, bar in enumerate(bars):
        if number and bar.group != bars[number - 1].group:
            y += _GROUP_GAP
        places.append(y + _ROW / 2)
        y += _ROW
    return places


def _column_heads(canvas: Canvas, frame: _Frame, y: float) -> None:
    x = frame.right + 18
    for name, width in _COLUMNS:
        x += width
        canvas.text(x, y, name, 11, fill=SOFT, anchor="end")


def _draw_bar(
    canvas: Canvas, bar: _Bar, frame: _Frame, middle: float, scale: float, first_of_group: bool
) -> None:
    row = bar.row
    base = middle + 4.5
    if first_of_group:
        canvas.text(frame.group, base, fit(bar.group, _SIZE, _GROUP_LIMIT), _SIZE, fill=INK)
    canvas.text(frame.label, base, fit(bar.label, _SIZE, _LABEL_LIMIT), _SIZE, fill=SOFT)
    spread = row.summary["iops"]
    length = spread["median"] * scale
    if row.mark:
        canvas.rect(frame.left, middle - _BAR / 2, length, _BAR, "#ffffff", stroke=SOFT, dash="4 3")
    else:
        canvas.rect(frame.left, middle - _BAR / 2, length, _BAR, bar.colour, opacity=bar.strength, radius=2)
    _whisker(canvas, frame.left + spread["min"] * scale, frame.left + spread["max"] * scale, middle)
    for number, value in enumerate(row.runs):
        offset = (number + 0.5) / len(row.runs) - 0.5
        canvas.circle(frame.left + value * scale, middle + offset * (_BAR - 5), 2.3, INK, "#ffffff")
    cells = (
        figures.count(spread["median"]) + ("*" if row.disturbed else ""),
        figures.ratio(row.ratio),
        figures.microseconds(row.median("cpu_us_per_request")),
        figures.percent(row.median("lock_wait_share")),
    )
    x = frame.right + 18
    for cell, (name, width) in zip(cells, _COLUMNS, strict=True):
        x += width
        canvas.text(x, base, cell, _SIZE, anchor="end", bold=name == "IOPS")


def _whisker(canvas: Canvas, low: float, high: float, middle: float) -> None:
    canvas.line((low, middle), (high, middle), INK, 1.2)
    for x in (low, high):
        canvas.line((x, middle - 4), (x, middle + 4), INK, 1.2)


def _footer(canvas: Canvas, data: Mapping[str, Any], y: float) -> float:
    steal = max((run["record"]["engine"]["steal_percent"] for run in data["runs"]), default=0.0)
    other = max((run["record"]["engine"]["other_percent"] for run in data["runs"]), default=0.0)
    clocks = _each(run["record"]["engine"]["clock"] for run in data["runs"])
    lines = [
        "Bars are medians, dots the runs, whiskers from the least to the most. "
        f"{figures.TIMES} is against the first bar of the group, for a mark of the panel. "
        "CPU/request: user and system time of all threads. Lock wait: share of the contexts' time. "
        f"Most steal time of a run: {steal:.1f} %; most CPU time of other processes: {other:.0f} %. "
        f"Clock: {clocks}."
    ]
    if any(node_is_buffered(node) for point in data["points"] for node in point["options"]["nodes"]):
        lines.append(
            "Page cache: reads come from memory; this is the cost of the software, not the speed of a disk."
        )
    if any(row.disturbed for row in read_rows(data)):
        lines.append("* has runs with more than 2 % steal time.")
    for line in lines:
        for part in wrap(line, 11, WIDTH - 2 * _MARGIN):
            canvas.text(_MARGIN, y, part, 11, fill=SOFT)
            y += 16
    return y + 6


def nice_ticks(highest: float) -> list[float]:
    """0 and up to six round steps, the last at or below `highest`."""
    power = 10.0 ** (math.floor(math.log10(highest)) - 1)
    step = next(power * factor for factor in (1, 2, 5, 10, 20, 50) if highest / (power * factor) <= 6)
    return [index * step for index in range(math.floor(highest / step + 1e-9) + 1)]
