"""Where the time went: a bar for each band of latency, of what its traced requests spent it on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.report import figures
from engine.report.chart import FAINT, INK, SOFT, WIDTH
from engine.report.svg import Canvas, fit, text_width
from engine.trace import STAGES

_TOP, _ROW, _LEFT, _RIGHT = 84.0, 34.0, 190.0, 820.0
_POINTS_MAX = 6  # pictures, the points with the most to tell apart
# Waiting is warm, work is blue and green, the device is grey: told apart by people with any colour vision.
_COLOURS = {
    "queue": "#f0b429",
    "graph change": "#7c2d12",
    "mapping": "#2563c9",
    "lock wait": "#c2272d",
    "overlap wait": "#e06c3c",
    "memory wait": "#a03f9a",
    "held back": "#e7a3c0",
    "submit": "#56b4e9",
    "device": "#9aa5b1",
    "completion": "#12886b",
    "callback": "#8fd0b5",
}


def stage_pictures(data: Mapping[str, Any]) -> list[Canvas]:
    """One for each point and workload that was traced; of its runs, the one with the median rate."""
    found = []
    for point in data["points"]:
        runs = [run for run in data["runs"] if run["point"] == point["index"] and not run["discarded"]]
        runs = [run for run in runs if run["record"]["engine"].get("traces", {}).get("jobs")]
        if not runs:
            continue
        runs.sort(key=lambda run: float(run["record"]["engine"]["iops"]))
        traces = runs[len(runs) // 2]["record"]["engine"]["traces"]
        for job in traces["jobs"]:
            if job["traces"]:
                name = f" · {job['job']}" if len(traces["jobs"]) > 1 else ""
                found.append((point["title"] + name, job))
    return [_picture(title, job) for title, job in found[:_POINTS_MAX]]


def _picture(of: str, job: Mapping[str, Any]) -> Canvas:
    title = "Where the time went" + (f": {of}" if of else "")
    canvas = Canvas(WIDTH, title, f"{title}; each bar is the mean of the requests between two percentiles")
    canvas.text(28, 36, fit(title, 17, WIDTH - 56, bold=True), 17, fill=INK, bold=True)
    drawn = f"{figures.count(job['traces'])} requests, one in {figures.count(job['every'])}"
    canvas.text(28, 58, f"Each bar is all of its requests' time. Traced: {drawn}.", 12.5, fill=SOFT)
    canvas.text(WIDTH - 28, 58, "mean", 12.5, fill=SOFT, anchor="end")
    for number, band in enumerate(job["bands"]):
        _bar(canvas, _TOP + number * _ROW, band)
    bottom = _TOP + len(job["bands"]) * _ROW
    for share in range(0, 101, 25):
        x = _LEFT + (_RIGHT - _LEFT) * share / 100
        canvas.line((x, bottom), (x, bottom + 5), SOFT)
        canvas.text(x, bottom + 19, f"{share} %", 12, fill=SOFT, anchor="middle")
    canvas.height = _legend(canvas, bottom + 46, job["bands"]) + 14
    return canvas


def _bar(canvas: Canvas, y: float, band: Mapping[str, Any]) -> None:
    canvas.text(_LEFT - 12, y + 17, _band_name(band), 12.5, anchor="end")
    canvas.rect(_LEFT, y + 2, _RIGHT - _LEFT, _ROW - 10, FAINT)
    x = _LEFT
    for part in band["stages"]:
        width = (_RIGHT - _LEFT) * part["mean_ns"] / band["mean_ns"] if band["mean_ns"] else 0.0
        canvas.rect(x, y + 2, width, _ROW - 10, _COLOURS[part["stage"]])
        label = figures.duration_ns(part["mean_ns"])
        if width > text_width(label, 11) + 10:
            dark = part["stage"] in ("mapping", "lock wait", "memory wait", "graph change", "completion")
            ink = "#ffffff" if dark else INK
            canvas.text(x + width / 2, y + 18, label, 11, fill=ink, anchor="middle")
        x += width
    canvas.text(WIDTH - 28, y + 17, figures.duration_ns(band["mean_ns"]), 12.5, anchor="end")


def _band_name(band: Mapping[str, Any]) -> str:
    if band["to"] == 100.0:
        return f"slowest {100.0 - band['from']:g} %"
    if band["from"] == 0.0:
        return f"fastest {band['to']:g} %"
    return f"p{band['from']:g} to p{band['to']:g}"


def _legend(canvas: Canvas, y: float, bands: Sequence[Mapping[str, Any]]) -> float:
    """In the order of the bars; as many a line as fit. Where it ends."""
    names: dict[tuple[str, str], None] = {}
    for name in STAGES:
        for band in bands:
            for part in band["stages"]:
                if part["stage"] == name:
                    names[part["stage"], part["node"]] = None
    x = _LEFT
    for stage, node in names:
        label = f"{stage} · {node}" if node else stage
        width = 34 + text_width(label, 12)
        if x + width > WIDTH - 28 and x > _LEFT:
            x, y = _LEFT, y + 22
        canvas.rect(x, y - 10, 12, 12, _COLOURS[stage], radius=2)
        canvas.text(x + 18, y, label, 12, fill=INK)
        x += width
    return y
