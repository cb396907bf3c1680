"""Slices of a run, whether its rate settled, and which runs lie far from the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import engine
from engine import cli
from engine.experiment.series import SLICES_LEAST, merge_slices, rates, settled
from engine.experiment.summary import outliers
from engine.histogram import Histogram


def slices(counts: list[int], seconds: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"end": (n + 1) * seconds, "seconds": seconds, "jobs": {"w": {"reads": count, "writes": 0}}}
        for n, count in enumerate(counts)
    ]


def raw(end: float, values: list[int]) -> dict[str, Any]:
    latency = Histogram(values).to_dict()
    return {
        "end": end,
        "seconds": 1.0,
        "jobs": {"w": {"reads": len(values), "writes": 1, "latency": latency}},
    }


def test_what_came_after_an_earlier_state() -> None:
    before, after = Histogram([5, 1000]), Histogram([5, 1000])
    for value in (7, 7, 90_000):
        after.record(value)
    later = after.since(before)
    assert (later.count, later.sum) == (3, 90_014)
    assert later.percentile(50) == 7
    assert later.min == 7
    assert 88_000 < later.max <= 90_000
    assert after.since(after).count == 0
    assert after.since(after).max == 0


def test_processes_are_merged_slice_by_slice() -> None:
    merged = merge_slices([[raw(1.0, [10, 20]), raw(2.0, [30])], [raw(1.1, [40])]])
    assert [one["end"] for one in merged] == [1.1, 2.0]
    first = merged[0]["jobs"]["w"]
    assert (first["reads"], first["writes"]) == (3, 2)
    assert (first["p50"], first["max"]) == (20, 40)
    assert sum(count for _, count in first["latency"]) == 3
    assert merge_slices([[], []]) == []


def test_a_last_slice_that_is_short_says_nothing_of_the_rate() -> None:
    points = slices([100, 100, 100])
    points[-1]["seconds"] = 0.2
    assert rates(points) == [(1.0, 100.0), (2.0, 100.0)]


@pytest.mark.parametrize(
    ("counts", "steady"),
    [
        ([1000] * 12, True),
        ([10, 200, 700, 900, 990, 1000, 1000, 1001, 1000, 999, 1000, 1000], True),  # it has warmed up
        ([1000, 980, 960, 940, 920, 900, 880, 860, 840, 820, 800, 780], False),  # it gets slower
        ([1000, 500] * 6, False),
        ([0] * 12, False),
    ],
)
def test_settled(counts: list[int], steady: bool) -> None:
    found = settled(slices(counts))
    assert found is not None
    assert found["steady"] is steady
    assert found["slices"] == 6


def test_a_drift_is_what_its_line_rises_by() -> None:
    found = settled(slices([100 + n for n in range(20)]))
    assert found is not None
    assert found["drift"] == pytest.approx(9 / 114.5, abs=1e-3)


def test_a_short_run_is_not_judged() -> None:
    assert settled(slices([5] * (SLICES_LEAST - 1))) is None


def test_outliers() -> None:
    assert outliers([100, 101, 99, 100, 60]) == [False, False, False, False, True]
    assert outliers([100, 101, 99, 100, 98]) == [False] * 5
    assert outliers([100, 100, 100, 100, 104]) == [False] * 5, "so near is none, however alike the others"
    assert outliers([1, 1000, 1]) == [False] * 3, "too few to say"


def test_a_run_has_its_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
    [run]
    repeat = 1
    sample = "50ms"
    [context.io0]
    [blockdev.null]
    driver = "null"
    size = "1G"
    latency-ns = "20us"
    [workload.w]
    node = "null"
    contexts = ["io0"]
    runtime = "600ms"
    iodepth = 4
    """
    (tmp_path / "e.toml").write_text(text)
    out = tmp_path / "out"
    assert cli.main(["run", str(tmp_path / "e.toml"), "-o", str(out), "--allow-debug-build"]) == 0
    results = engine.load_results(out)
    record = results.data["runs"][0]["record"]["engine"]
    series = results.series(0)
    assert sum(series["reads"]) == record["requests"]
    assert 2 <= len(series["end"]) <= 14
    assert series["end"] == sorted(series["end"])
    for p50, p99, most in zip(series["p50"], series["p99"], series["max"], strict=True):
        assert 0 < p50 <= p99 <= most
    whole = results.histogram(0)
    assert whole.count == record["requests"]
    assert (
        whole.p50
        == results.data["runs"][0]["record"]["jobs"][0]["read"]["clat_ns"]["percentile"]["50.000000"]
    )
    assert results.histogram(0, "write").count == 0
    assert len(results.table("runs")["settled"]) == 1
    assert json.dumps(results.data)
    capsys.readouterr()
