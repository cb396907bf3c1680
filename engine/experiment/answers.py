"""What a result says beyond its points: up to which rate it keeps up, what reaches a latency target, and how
rates grow with contexts.

All take the data of a result file and look at medians; marks are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.experiment.search import KEPT_UP, Search, bounds, done_per_second

KNEE_FACTOR = 3.0  # how far p99 may rise above that at the lowest rate
STEPS_LEAST = 3  # on an axis, to speak of a knee


@dataclass(frozen=True)
class Knee:
    """Of one group of points that differ in the rate asked for alone. Rates a second, latencies in ns."""

    group: str
    asked: float  # the highest rate that was kept up with, at a p99 that had not risen far; 0: none was
    p99: float
    beyond: float | None  # the next rate that was tried; None: it was kept up with to the end
    beyond_iops: float  # done of it, with flushes
    beyond_p99: float


@dataclass(frozen=True)
class Reached:
    """The fastest point of a group whose latency is within the target."""

    group: str
    label: str | None  # None: not even the slowest is
    iops: float
    latency_ns: float


@dataclass(frozen=True)
class Searched:
    """What one search has found: of the highest value that keeps to the target, and of the lowest that does
    not. Rates a second, latencies in ns."""

    group: str
    search: Search
    value: int | None  # None: not even the lowest keeps to it
    latency_ns: float
    iops: float
    beyond: int | None  # None: all of the range keeps to it
    beyond_latency_ns: float
    beyond_iops: float


@dataclass(frozen=True)
class Scaling:
    """The universal scalability law: rate(n) = n·first / (1 + contention·(n-1) + coherence·n·(n-1)).

    Fitted to the medians by least squares of n / rate, with neither term below zero. Source: Gunther,
    Guerrilla Capacity Planning.
    """

    group: str
    points: tuple[tuple[int, float], ...]  # (contexts, requests a second)
    first: float  # a second, of one context
    contention: float  # what is done one after another
    coherence: float  # what each pair of contexts costs

    def rate(self, contexts: float) -> float:
        others = contexts - 1
        return contexts * self.first / (1 + self.contention * others + self.coherence * contexts * others)


def groups(data: Mapping[str, Any], key: str) -> dict[str, list[Mapping[str, Any]]]:
    """Points with runs that differ in one axis alone, by what they have in common."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for point in data["points"]:
        if point["mark"] or not point["summary"] or not point["summary"]["iops"]:
            continue
        label = " · ".join(text for other, text in point["labels"].items() if other != key)
        found.setdefault(label, []).append(point)
    return found


def median(point: Mapping[str, Any], figure: str) -> float | None:
    spread = point["summary"].get(figure)
    return None if spread is None else float(spread["median"])


def knees(data: Mapping[str, Any]) -> list[Knee]:
    """For a sweep of `rate-iops`."""
    key = next((key for key in data["plan"]["sweep"] if key.endswith(".rate-iops")), None)
    if key is None or data["plan"].get("search"):
        return []
    workload = key.split(".")[1]  # others of a mix have rates of their own
    found = []
    for group, points in groups(data, key).items():
        asked = [point for point in points if point["settings"][key]]
        jobs = [point["summary"]["jobs"][workload] for point in asked]
        steps = sorted(
            (
                float(point["settings"][key]),
                done_per_second(job),
                float((job["latency_p99_ns"] or {"median": 0.0})["median"]),
            )
            for point, job in zip(asked, jobs, strict=True)
        )
        if len(steps) >= STEPS_LEAST:
            found.append(_knee(group, steps))
    return found


def _knee(group: str, steps: Sequence[tuple[float, float, float]]) -> Knee:
    most = KNEE_FACTOR * steps[0][2]
    good = 0
    while good < len(steps) and steps[good][1] >= KEPT_UP * steps[good][0] and steps[good][2] <= most:
        good += 1
    asked, _, p99 = steps[good - 1] if good else (0.0, 0.0, 0.0)
    if good == len(steps):
        return Knee(group, asked, p99, None, 0.0, 0.0)
    return Knee(group, asked, p99, *steps[good])


def reached(data: Mapping[str, Any]) -> list[Reached]:
    """For a [target]: of the points that differ in the last axis alone."""
    target = data["plan"].get("target")
    if not target or not target["latency"] or data["plan"].get("search"):
        return []
    keys = data["plan"]["sweep"]
    figure = f"latency_p{target['percentile']}_ns"
    found = []
    for group, points in groups(data, keys[-1] if keys else "").items():
        # A closed loop is no rate of its own: its percentiles leave out who would have come during a stall.
        closed = [
            p for p in points if keys and keys[-1].endswith(".rate-iops") and not p["settings"][keys[-1]]
        ]
        points = [point for point in points if point not in closed]
        within = [
            (median(point, "iops") or 0.0, latency, point["labels"].get(keys[-1], "") if keys else "")
            for point in points
            if (latency := median(point, figure)) is not None and latency <= target["latency"] * 1e9
        ]
        iops, latency, label = max(within, default=(0.0, 0.0, None))
        found.append(Reached(group, label, iops, latency))
    return found


def searched(data: Mapping[str, Any]) -> list[Searched]:
    """For a search, each by itself."""
    if not data["plan"].get("search"):
        return []
    search = Search(**data["plan"]["search"])
    found = []
    for group, points in groups(data, search.key).items():
        by_value = {point["settings"][search.key]: point["summary"] for point in points}
        value, beyond = bounds({v: search.within(summary, v) for v, summary in by_value.items()})
        found.append(
            Searched(
                group,
                search,
                value,
                *_figures(search, by_value.get(value)),
                beyond,
                *_figures(search, by_value.get(beyond)),
            )
        )
    return found


def _figures(search: Search, summary: Mapping[str, Any] | None) -> tuple[float, float]:
    """Latency and rate of the workload that is searched for."""
    if summary is None:
        return 0.0, 0.0
    job = summary["jobs"][search.workload]
    latency = job[f"latency_p{search.percentile}_ns"]
    return float(latency["median"]) if latency else 0.0, float(job["iops"]["median"])


def contexts_of(point: Mapping[str, Any]) -> int:
    """How many contexts serve its workloads."""
    queues = {device["name"]: device["queues"] for device in point["options"].get("devices", ())}
    return len(
        {
            context
            for workload in point["options"]["workloads"]
            for context in (
                queues.get(workload["device"], ()) if workload["device"] else workload["contexts"]
            )
        }
    )


def scaling_key(data: Mapping[str, Any]) -> str | None:
    """The axis along which the number of contexts changes."""
    for key in data["plan"]["sweep"]:
        for points in groups(data, key).values():
            if len({contexts_of(point) for point in points}) >= 2:
                return str(key)
    return None


def scalings(data: Mapping[str, Any]) -> list[Scaling]:
    """A group for each combination of the other axes; with fewer than three numbers of contexts the terms are
    those of a straight line, which is said by zeroes."""
    key = scaling_key(data)
    if key is None:
        return []
    found = []
    for group, points in groups(data, key).items():
        rates: dict[int, float] = {}
        for point in points:
            rate = median(point, "iops") or 0.0
            if rate > 0:
                rates[contexts_of(point)] = max(rate, rates.get(contexts_of(point), 0.0))
        if len(rates) >= 2:
            found.append(_fit(group, tuple(sorted(rates.items()))))
    return found


def _fit(group: str, points: tuple[tuple[int, float], ...]) -> Scaling:
    """n / rate = a + b (n - 1) + c n (n - 1): relative errors, b and c not below zero."""
    best: tuple[float, tuple[float, ...]] | None = None
    choices = [(0,), (0, 1), (0, 2), (0, 1, 2)] if len(points) >= 4 else [(0,), (0, 1), (0, 2)]
    for terms in choices if len(points) >= 3 else choices[:1]:
        solved = _least_squares(points, terms)
        if solved is None or min(solved) < 0 or solved[0] <= 0:
            continue
        error = sum(
            (1 - sum(c * t for c, t in zip(solved, _terms(n), strict=True)) * rate / n) ** 2
            for n, rate in points
        )
        if best is None or error < best[0]:
            best = error, solved
    assert best is not None  # a mean is always there
    a, b, c = best[1]
    return Scaling(group, points, 1 / a, b / a, c / a)


def _terms(n: int) -> tuple[float, float, float]:
    return 1.0, n - 1.0, n * (n - 1.0)


def _least_squares(
    points: Sequence[tuple[int, float]], terms: tuple[int, ...]
) -> tuple[float, float, float] | None:
    """Of the chosen terms, the others zero; None where they cannot be told apart."""
    rows = [[_terms(n)[term] * rate / n for term in terms] for n, rate in points]  # each to be 1
    size = len(terms)
    matrix = [
        [sum(row[i] * row[j] for row in rows) for j in range(size)] + [sum(row[i] for row in rows)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda r: abs(matrix[r][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        scale = max(abs(value) for value in matrix[i][:size])
        if abs(matrix[i][i]) <= 1e-12 * scale or matrix[i][i] == 0:
            return None
        for r in range(size):
            if r != i:
                factor = matrix[r][i] / matrix[i][i]
                matrix[r] = [a - factor * b for a, b in zip(matrix[r], matrix[i], strict=True)]
    solved = [0.0, 0.0, 0.0]
    for i, term in enumerate(terms):
        solved[term] = matrix[i][size] / matrix[i][i]
    return solved[0], solved[1], solved[2]
