"""Two results held against each other: point by point, what differs beyond the noise of their runs.

The interval is that of the ratio of medians over resampled runs (bootstrap, percentiles, seeded): with few
runs it spans what the runs span, so few runs say little, as they should. Of pairs of samples of one
distribution, normal or with a long tail, it held the truth in 95 of 100 cases or more with five runs a side,
in 88 with three.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.experiment.results import Results

RESAMPLES = 2000
CONFIDENCE = 0.95
RUNS_LEAST = 3  # on either side, to say anything
SEED = 1


@dataclass(frozen=True)
class Difference:
    """Of one point: B's rate over A's. low and high: None where there are too few runs."""

    title: str
    runs_a: tuple[float, ...]
    runs_b: tuple[float, ...]
    ratio: float
    low: float | None
    high: float | None

    @property
    def median_a(self) -> float:
        return statistics.median(self.runs_a)

    @property
    def median_b(self) -> float:
        return statistics.median(self.runs_b)

    @property
    def beyond_noise(self) -> bool:
        return self.low is not None and self.high is not None and not self.low <= 1.0 <= self.high

    def slower_by(self, share: float) -> bool:
        """Beyond noise, and by that share or more at the median."""
        return self.beyond_noise and self.ratio <= 1.0 - share


@dataclass(frozen=True)
class Comparison:
    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    circumstances: tuple[str, ...]  # what else was not the same


def interval(a: Sequence[float], b: Sequence[float], seed: int = SEED) -> tuple[float, float] | None:
    """Of median(b) / median(a)."""
    if min(len(a), len(b)) < RUNS_LEAST or min(a) <= 0:
        return None
    chance = random.Random(seed)
    ratios = sorted(
        statistics.median(chance.choices(b, k=len(b))) / statistics.median(chance.choices(a, k=len(a)))
        for _ in range(RESAMPLES)
    )
    tail = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return ratios[tail], ratios[-1 - tail]


def compare(a: Results, b: Results) -> Comparison:
    """Points are the same that have the same settings and mark; titles may differ."""
    points_a, points_b = _by_settings(a), _by_settings(b)
    differences = []
    for key, point in points_b.items():
        runs_a, runs_b = _runs(a, points_a.get(key)), _runs(b, point)
        if not runs_a or not runs_b or statistics.median(runs_a) <= 0:
            continue
        found = interval(runs_a, runs_b)
        differences.append(
            Difference(
                point["title"] or b.title,
                runs_a,
                runs_b,
                statistics.median(runs_b) / statistics.median(runs_a),
                *(found or (None, None)),
            )
        )
    return Comparison(
        tuple(differences),
        tuple(point["title"] for key, point in points_a.items() if key not in points_b),
        tuple(point["title"] for key, point in points_b.items() if key not in points_a),
        tuple(_circumstances(a.data, b.data)),
    )


def _by_settings(results: Results) -> dict[str, Mapping[str, Any]]:
    return {
        json.dumps([point["settings"], point["mark"]], sort_keys=True): point
        for point in results.data["points"]
    }


def _runs(results: Results, point: Mapping[str, Any] | None) -> tuple[float, ...]:
    return tuple(
        float(run["record"]["engine"]["iops"])
        for run in results.data["runs"]
        if point is not None and run["point"] == point["index"] and not run["discarded"]
    )


def _circumstances(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Host, build and length of the runs, where they differ: figures then differ for more than one reason."""
    names = {
        "host": ("cpu_model", "kernel", "cpus_allowed", "virtual_machine"),
        "build": ("version", "compiler", "flags", "liburing", "optimised", "sanitized"),
    }
    found = [
        f"{part} {key.replace('_', ' ')}: {a[part].get(key)} and {b[part].get(key)}"
        for part, keys in names.items()
        for key in keys
        if a[part].get(key) != b[part].get(key)
    ]
    if a["quick"] or b["quick"]:
        found.append("a quick run is among them: it shows that all works, no more")
    return found
