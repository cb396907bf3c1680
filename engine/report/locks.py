"""Who waited for whom: the locks of the nodes and of the engine, by how often they were found taken.

Of the point with the most of it; medians are not taken, its usable runs are added up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.report import figures
from engine.report.chart import COLOURS, INK, SOFT, WIDTH
from engine.report.svg import Canvas, fit

_TOP, _ROW, _LEFT, _RIGHT = 84.0, 27.0, 250.0, 560.0
_ROWS_MAX = 12


@dataclass(frozen=True)
class Contention:
    owner: str
    lock: str
    acquisitions: int
    contended: int
    wait_ns: int | None  # None: no lock profile
    requests: int


def contentions(data: Mapping[str, Any], point: int) -> list[Contention]:
    """The locks that were found taken, most often first."""
    sums: dict[tuple[str, str], list[int]] = {}
    requests, profiled = 0, False
    for run in data["runs"]:
        if run["point"] != point or run["discarded"]:
            continue
        record = run["record"]["engine"]
        requests += record["requests"]
        profiled = profiled or record["options"]["engine"]["lock_profile"]
        for lock in record["locks"]:
            own = sums.setdefault((lock["owner"], lock["lock"]), [0, 0, 0])
            own[0] += lock["acquisitions"]
            own[1] += lock["contended"]
            own[2] += lock["wait_ns"]["total_ns"]
    found = [
        Contention(owner, lock, own[0], own[1], own[2] if profiled else None, requests)
        for (owner, lock), own in sums.items()
        if own[1]
    ]
    return sorted(found, key=lambda one: -one.contended)


def lock_picture(data: Mapping[str, Any]) -> list[Canvas]:
    """Nothing where no lock was ever found taken."""
    by_point = [(contentions(data, point["index"]), point) for point in data["points"]]
    found, point = max(
        by_point, key=lambda each: sum(one.contended for one in each[0]), default=([], {"title": ""})
    )
    if not found:
        return []
    title = "Locks that were found taken" + (f": {point['title']}" if point["title"] else "")
    canvas = Canvas(WIDTH, title, f"{title}; the longest bar is the most")
    canvas.text(28, 36, fit(title, 17, WIDTH - 56, bold=True), 17, fill=INK, bold=True)
    heads = ("times", "of acquisitions", "in 1000 requests", "wait a request")
    places = (_RIGHT + 60, _RIGHT + 164, _RIGHT + 276, _RIGHT + 372)
    for x, text in zip(places, heads, strict=True):
        canvas.text(x, _TOP - 14, text, 11, fill=SOFT, anchor="end")
    most = found[0].contended
    for number, one in enumerate(found[:_ROWS_MAX]):
        y = _TOP + number * _ROW
        canvas.text(
            _LEFT - 12, y + 14, fit(f"{one.owner} · {one.lock}", 12.5, _LEFT - 40), 12.5, anchor="end"
        )
        canvas.rect(_LEFT, y + 1, one.contended / most * (_RIGHT - _LEFT), _ROW - 9, COLOURS[0], radius=2)
        wait = None if one.wait_ns is None or not one.requests else one.wait_ns / one.requests
        cells = (
            figures.count(one.contended),
            figures.percent(one.contended / one.acquisitions if one.acquisitions else None),
            figures.three_digits(1000 * one.contended / one.requests) if one.requests else figures.NONE,
            figures.duration_ns(wait),
        )
        for x, cell in zip(places, cells, strict=True):
            canvas.text(x, y + 14, cell, 12.5, anchor="end")
    canvas.height = _TOP + min(len(found), _ROWS_MAX) * _ROW + 12
    if len(found) > _ROWS_MAX:
        canvas.text(_LEFT, canvas.height + 2, f"{len(found) - _ROWS_MAX} more, less often", 11, fill=SOFT)
        canvas.height += 16
    return [canvas]
