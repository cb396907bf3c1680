"""Fio's layout, medians, CPU lists: arithmetic on made-up figures."""

from __future__ import annotations

import pytest

from engine.experiment import fio
from engine.experiment.host import check_cpus, format_cpu_list, parse_cpu_list
from engine.experiment.summary import spread, usable
from engine.histogram import Histogram


def test_a_brief_has_the_sum_and_two_percentiles() -> None:
    brief = fio.brief(Histogram([10, 20, 30, 40]))
    assert brief == {"count": 4, "total_ns": 100, "mean": 25.0, "p50": 20, "p99": 40, "max": 40}
    assert fio.brief(Histogram())["p99"] == 0


def test_merging_is_the_same_as_counting_together() -> None:
    a, b = [5, 70, 900], [3, 70, 10**9, 12]
    assert fio.merged([Histogram(a), Histogram(), Histogram(b)]) == Histogram(a + b)


def test_percentiles_are_keyed_as_fio_keys_them() -> None:
    block = fio.latency(Histogram([100] * 10), percentiles=True)
    assert next(iter(block["percentile"])) == "1.000000"
    assert {"50.000000", "99.000000", "99.990000"} <= set(block["percentile"])
    assert "percentile" not in fio.latency(Histogram(), percentiles=True)


def test_depth_levels_are_fios() -> None:
    levels = fio.depth_levels([1, 0, 0, 0, 0, 0, 2, 1])
    assert levels == {"1": 25.0, "2": 0.0, "4": 0.0, "8": 0.0, "16": 0.0, "32": 0.0, ">=64": 75.0}
    assert sum(fio.depth_levels([0] * 8).values()) == 0


def test_latency_classes_cover_everything_once() -> None:
    values = [1, 3, 999, 1_500, 40_000, 3_000_000, 5_000_000_000]
    classes = fio.latency_classes(Histogram(values))
    assert set(classes) == {"latency_ns", "latency_us", "latency_ms"}
    total = sum(sum(group.values()) for group in classes.values())
    assert total == pytest.approx(100.0, abs=1e-4)
    assert classes["latency_us"]["50"] > 0
    assert classes["latency_ms"][">=2000"] > 0


def test_spread_and_discarded_runs() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert spread([]) is None
    runs = [
        {"point": 0, "discarded": True},
        {"point": 0, "discarded": False},
        {"point": 1, "discarded": False},
    ]
    assert usable(runs, 0) == [runs[1]]


def test_cpu_lists_both_ways() -> None:
    assert parse_cpu_list("0-2,5") == [0, 1, 2, 5]
    assert format_cpu_list([5, 0, 1, 2]) == "0-2,5"
    for wrong in ("", "a", "3-1", "-1", "1,,2"):
        with pytest.raises(ValueError, match=r"range of CPUs|invalid literal"):
            parse_cpu_list(wrong)


def test_a_cpu_that_does_not_exist_is_named() -> None:
    wrong = check_cpus((0, 4095))
    assert wrong is not None
    assert "CPU 4095 does not exist: this host has 0" in wrong
