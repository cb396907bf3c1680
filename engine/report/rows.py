"""The points of a result in the order of reading: marks beside what they are held against, with ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One point that has usable runs."""

    labels: Mapping[str, str]  # sweep key: value, for people
    mark: str | None  # its label
    summary: Mapping[str, Any]
    runs: tuple[float, ...]  # IOPS of each usable run
    ratio: float | None  # of medians, against the row's base
    workloads: tuple[Mapping[str, Any], ...] = ()  # their options

    def median(self, key: str) -> float | None:
        spread = self.summary.get(key)
        return None if spread is None else float(spread["median"])

    @property
    def disturbed(self) -> bool:
        """Whether a run was kept in spite of its steal time."""
        return bool(self.summary["marked"])


def read_rows(data: Mapping[str, Any]) -> list[Row]:
    keys: list[str] = list(data["plan"]["sweep"])
    points = [point for point in data["points"] if point["summary"] and point["summary"]["iops"]]
    if search := data["plan"].get("search"):  # points come as it went; they are read as its values rise
        points = _in_order(points, search["key"])
    if keys:  # the first key's values stay together; a mark that sets that key itself comes last
        order = list(dict.fromkeys(point["labels"].get(keys[0]) for point in points))
        order.sort(key=lambda label: label is None)
        points.sort(key=lambda point: (order.index(point["labels"].get(keys[0])), point["mark"] is not None))
    runs: dict[int, list[float]] = {}
    for run in data["runs"]:
        if not run["discarded"]:
            runs.setdefault(run["point"], []).append(float(run["record"]["engine"]["iops"]))
    return [
        Row(
            point["labels"],
            point["mark_label"] if point["mark"] else None,
            point["summary"],
            tuple(runs.get(point["index"], ())),
            _ratio(point, points, keys),
            tuple(point["options"]["workloads"]) if "options" in point else (),
        )
        for point in points
    ]


def _in_order(points: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    def group(point: Mapping[str, Any]) -> list[tuple[str, Any]]:
        return [(name, label) for name, label in point["labels"].items() if name != key]

    firsts: list[Any] = []
    for point in points:
        if group(point) not in firsts:
            firsts.append(group(point))
    return sorted(
        points,
        key=lambda p: (p["mark"] is not None, firsts.index(group(p)), 0 if p["mark"] else p["settings"][key]),
    )


def column_name(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def _ratio(
    point: Mapping[str, Any], points: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> float | None:
    """Against the first point with the same settings but for the last key; for a mark, all it leaves."""
    if not keys:
        return None
    same = [key for key in (keys if point["mark"] else keys[:-1]) if key in point["labels"]]
    for other in points:
        if not other["mark"] and all(other["labels"].get(key) == point["labels"][key] for key in same):
            base = float(other["summary"]["iops"]["median"])
            return float(point["summary"]["iops"]["median"]) / base if base else None
    return None
