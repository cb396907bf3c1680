"""How rates grow with contexts: what was measured, a straight line from one context, and the fitted law; and
what a request costs in CPU time meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.experiment import answers
from engine.report.chart import Series, draw, microsecond_axis, number_axis, rate_axis
from engine.report.svg import Canvas

GROUPS_MAX = 4  # each has up to three lines


def scaling(data: Mapping[str, Any]) -> list[Canvas]:
    """Nothing where the number of contexts does not change."""
    every = answers.scalings(data)
    laws = every[:GROUPS_MAX]
    key = answers.scaling_key(data)
    if not laws or key is None:
        return []
    lines: list[Series] = []
    for number, law in enumerate(laws):
        lines.append(Series(law.group or "measured", tuple((float(n), rate) for n, rate in law.points)))
        if len(law.points) >= answers.STEPS_LEAST:
            low, high = law.points[0][0], law.points[-1][0]
            curve = tuple((n, law.rate(n)) for n in (low + (high - low) * i / 40 for i in range(41)))
            lines.append(Series(f"law, contention {100 * law.contention:.1f} %", curve, False, number))
    best = max(laws, key=lambda law: law.points[0][1] / law.points[0][0])
    first = best.points[0][1] / best.points[0][0]
    numbers = sorted({float(n) for law in laws for n, _ in law.points})
    lines.append(Series("ideal", tuple((n, n * first) for n in numbers), False, 5))
    found = [
        draw(
            "IOPS against contexts",
            number_axis("contexts", numbers),
            rate_axis(lines),
            lines,
            len(every) - len(laws),
        )
    ]
    cost: dict[str, list[tuple[float, float]]] = {}
    for group, points in answers.groups(data, key).items():
        for point in points:
            if (value := answers.median(point, "cpu_us_per_request")) is not None and value > 0:
                cost.setdefault(group, []).append((float(answers.contexts_of(point)), value))
    lines = [Series(group or "measured", tuple(sorted(points))) for group, points in cost.items()]
    if drawn := lines[:GROUPS_MAX]:
        axis = number_axis("contexts", sorted({x for line in drawn for x, _ in line.points}))
        found.append(
            draw(
                "CPU time of a request against contexts",
                axis,
                microsecond_axis(drawn),
                drawn,
                len(lines) - len(drawn),
            )
        )
    return found
