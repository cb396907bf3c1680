"""What a result says beyond its points: knees, latency targets, the scalability law."""

from __future__ import annotations

from typing import Any

import pytest

from engine.experiment.answers import knees, reached, scalings
from engine.report.experiment_table import answer_lines

RATE = "workload.w.rate-iops"


def point(index: int, settings: dict[str, Any], iops: float, p99: float, contexts: int = 1) -> dict[str, Any]:
    def spread(value: float) -> dict[str, float]:
        return {"median": value, "min": value, "max": value}

    names = [f"io{n}" for n in range(contexts)]
    return {
        "index": index,
        "mark": None,
        "settings": settings,
        "labels": {key: str(value) for key, value in settings.items()},
        "options": {"devices": [], "workloads": [{"device": None, "contexts": names}]},
        "summary": {"iops": spread(iops), "latency_p99_ns": spread(p99)}
        | {
            "jobs": {
                "w": {"iops": spread(iops), "flushes_per_second": spread(0), "latency_p99_ns": spread(p99)}
            }
        },
    }


def result(points: list[dict[str, Any]], latency: float = 0.0) -> dict[str, Any]:
    sweep = list(points[0]["settings"])
    return {"points": points, "plan": {"sweep": sweep, "target": {"latency": latency, "percentile": "99"}}}


def rates(*steps: tuple[float, float, float]) -> dict[str, Any]:
    return result([point(n, {RATE: asked}, done, p99) for n, (asked, done, p99) in enumerate(steps)])


def test_the_knee_is_where_latency_rises() -> None:
    (knee,) = knees(rates((100, 100, 50), (200, 200, 60), (400, 399, 90), (800, 795, 4000), (1600, 900, 9e6)))
    assert (knee.asked, knee.p99) == (400, 90)
    assert (knee.beyond, knee.beyond_iops, knee.beyond_p99) == (800, 795, 4000)


def test_the_knee_is_where_the_rate_is_not_kept_up_with() -> None:
    data = rates((100, 100, 50), (200, 200, 50), (400, 300, 50))
    (knee,) = knees(data)
    assert (knee.asked, knee.beyond) == (200, 400)
    (line,) = answer_lines(data)
    assert line == "200 a second are kept up with, p99 50 ns; with 400 asked: 300 done, p99 50 ns"


def test_a_rate_is_that_of_its_workload_and_counts_flushes() -> None:
    """Beside another one in a mix, which is quick and waits long."""
    data = rates((100, 80, 50), (200, 160, 50), (400, 320, 50))
    for one in data["points"]:
        one["summary"]["jobs"]["w"]["flushes_per_second"]["median"] = one["settings"][RATE] / 5
        one["summary"] |= {"iops": {"median": 1e6}, "latency_p99_ns": {"median": 1e9 * one["index"]}}
    (knee,) = knees(data)
    assert (knee.asked, knee.p99, knee.beyond) == (400, 50, None)
    data["points"][2]["summary"]["jobs"]["w"]["flushes_per_second"]["median"] = 0
    (knee,) = knees(data)
    assert (knee.asked, knee.beyond, knee.beyond_iops) == (200, 400, 320)


def test_no_knee_and_nothing_but_knee() -> None:
    assert answer_lines(rates((1, 1, 5), (2, 2, 5), (4, 4, 5))) == [
        "every rate was kept up with, to 4 a second"
    ]
    (line,) = answer_lines(rates((10, 1, 5), (20, 1, 5), (40, 1, 5)))
    assert line.startswith("not even the lowest rate is kept up with")
    assert knees(rates((1, 1, 5), (2, 2, 5))) == [], "two steps are no sweep"


def test_the_most_within_a_target() -> None:
    depths = [(1, 100.0, 10e3), (8, 700.0, 40e3), (64, 900.0, 900e3)]
    points = [
        point(n, {"node": node, "depth": depth}, iops * (2 if node == "b" else 1), p99)
        for n, (node, (depth, iops, p99)) in enumerate((node, step) for node in "ab" for step in depths)
    ]
    found = reached(result(points, latency=50e-6))
    assert [(one.group, one.label, one.iops) for one in found] == [("a", "8", 700), ("b", "8", 1400)]
    assert [one.label for one in reached(result(points, latency=1e-6))] == [None, None]
    assert reached(result(points)) == []
    assert "a: nothing has its p99 within 1.00 µs" in answer_lines(result(points, latency=1e-6))


def test_a_closed_loop_reaches_no_target() -> None:
    points = [point(n, {RATE: rate}, iops, 10e3) for n, (rate, iops) in enumerate([(0, 900), (100, 100)])]
    (found,) = reached(result(points, latency=1e-3))
    assert found.iops == 100


@pytest.mark.parametrize(("contention", "coherence"), [(0.0, 0.0), (0.05, 0.0), (0.0, 0.01), (0.03, 0.002)])
def test_the_law_is_found_again(contention: float, coherence: float) -> None:
    def rate(n: int) -> float:
        return 1e6 * n / (1 + contention * (n - 1) + coherence * n * (n - 1))

    data = result([point(k, {"contexts": n}, rate(n), 1, n) for k, n in enumerate((1, 2, 4, 8, 16))])
    (law,) = scalings(data)
    assert law.first == pytest.approx(1e6, rel=1e-6)
    assert law.contention == pytest.approx(contention, abs=1e-6)
    assert law.coherence == pytest.approx(coherence, abs=1e-6)
    assert law.rate(8) == pytest.approx(rate(8))


def test_a_law_has_no_term_below_zero() -> None:
    data = result([point(k, {"contexts": n}, n**1.3, 1, n) for k, n in enumerate((1, 2, 4, 8))])
    (law,) = scalings(data)
    assert law.contention >= 0
    assert law.coherence >= 0


def test_no_contexts_no_law() -> None:
    assert scalings(result([point(0, {"depth": 1}, 1, 1), point(1, {"depth": 2}, 1, 1)])) == []
