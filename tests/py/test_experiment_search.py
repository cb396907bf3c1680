"""The search for a latency target: what is tried next, what is found and said, resuming, wrong wishes.
Latencies are made up, but for one run over a throttled node, of which only what must be so is asserted.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import engine
import engine.experiment
from engine.experiment import runner
from engine.experiment.answers import Searched, knees, reached, searched
from engine.experiment.api import Silent
from engine.experiment.document import Document
from engine.experiment.errors import DocumentError
from engine.experiment.model import Setup
from engine.experiment.plan import Plan, make_plan
from engine.experiment.processes import run_point
from engine.experiment.runner import Result, run_plan
from engine.experiment.search import Search
from engine.report.experiment_table import answer_lines, result_lines, search_line
from engine.report.page import page
from engine.report.pictures import compose

BASE = """\
[run]
repeat = 2
sample = "0"
[context.io0]
[blockdev.null]
driver = "null"
size = "64M"
[blockdev.other]
driver = "null"
size = "64M"
[workload.w]
node = "null"
contexts = ["io0"]
count = 100
"""
DEPTH = '[target]\nlatency = "1ms"\nsearch = "iodepth"\n'
RATE = '[target]\nlatency = "1ms"\nsearch = "workload.w.rate-iops"\nrange = "100..100000"\n'


def plan(text: str, quick: bool = False) -> Plan:
    return make_plan(Document("b.toml", BASE + text), quick=quick)


def search(key: str = "iodepth", low: int = 1, high: int = 256, most: int = 12) -> Search:
    return Search(f"workload.w.{key}", low, high, most, "99", 1e6)


def tries(one: Search, last_good: int) -> dict[int, bool]:
    tried: dict[int, bool] = {}
    while (value := one.next_value(tried)) is not None:
        assert value not in tried
        assert one.low <= value <= one.high
        tried[value] = value <= last_good
        assert len(tried) <= one.most
    return tried


# ---- what is tried


def test_every_depth_is_found() -> None:
    for last_good in range(300):
        tried = tries(search(), last_good)
        good = [value for value, within in tried.items() if within]
        if last_good == 0:
            assert list(tried) == [1]
        elif last_good >= 256:
            assert list(tried) == [1, 256]
        else:
            assert max(good) == last_good
            assert not tried[last_good + 1]


def test_a_rate_is_found_within_two_percent() -> None:
    one = search("rate-iops", 1000, 1_000_000, most=20)
    for last_good in (1000, 1001, 5000, 77_777, 999_999):
        tried = tries(one, last_good)
        good = max(value for value, within in tried.items() if within)
        bad = min(value for value, within in tried.items() if not within)
        assert good <= last_good < bad
        assert bad <= good * 1.02 or bad - good == 1


def test_the_number_of_points_is_bounded() -> None:
    assert len(tries(search(most=4), 100)) == 4
    assert len(tries(search("rate-iops", 1, 2_000_000_000, most=30), 123_456_789)) <= 30


def test_where_noise_contradicts_itself_the_lowest_failure_counts() -> None:
    one = search()
    assert one.next_value({1: True, 256: True}) is None
    assert one.next_value({1: True, 256: False, 16: False, 64: True}) == 4
    assert one.next_value({1: True, 256: False, 2: False, 64: True}) is None


# ---- made-up runs


class Made:
    """Instead of `run_point`: a latency that follows from depth and rate, and the rate that comes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, setup: Setup) -> None:
        self.real = run_point(setup)
        self.asked: list[tuple[str, int, int]] = []
        self.stop_after = 10**9
        self.most: dict[str, int] = {"null": 37, "other": 5}
        monkeypatch.setattr(runner, "run_point", self)

    def __call__(self, setup: Setup) -> dict[str, Any]:
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        record: dict[str, Any] = copy.deepcopy(self.real)
        (workload,) = setup.workloads
        self.asked.append((str(workload.node), workload.iodepth, workload.rate_iops))
        most = self.most[str(workload.node)]
        latency = 1e6 * workload.iodepth / most
        iops = 1000.0 * workload.iodepth
        if workload.rate_iops:
            latency, iops = 5e5, min(workload.rate_iops, 1000.0 * most)
        job = record["jobs"][0]
        job["read"]["clat_ns"]["percentile"] = dict.fromkeys(("50.000000", "99.000000", "99.900000"), latency)
        job["read"]["iops"] = record["engine"]["iops"] = iops
        record["engine"]["steal_percent"] = 0.0
        return record


def found(data: dict[str, Any]) -> list[tuple[str, int | None, int | None]]:
    return [(one.group, one.value, one.beyond) for one in searched(data)]


def test_a_depth_is_found_in_each_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(DEPTH + '[sweep]\n"workload.w.node" = ["null", "other"]\n')
    runs = Made(monkeypatch, made.points[0].setup)
    result = Result.create(made, tmp_path / "out")
    run_plan(result, Silent())
    assert result.data["complete"]
    assert found(result.data) == [("null", 37, 38), ("other", 5, 6)]
    assert result.data["plan"]["points"] == len(result.data["points"]) == len(set(runs.asked))
    assert len(runs.asked) == 2 * len(set(runs.asked)), "each point has its repetitions"
    for index, point in enumerate(result.data["points"]):
        assert point["index"] == index
        assert point["summary"]["runs"] == 2
        depth = point["settings"]["workload.w.iodepth"]
        assert point["options"]["workloads"][0]["iodepth"] == depth
        assert point["labels"]["workload.w.iodepth"] == f"iodepth {depth}"
    lines = answer_lines(result.data)
    assert lines[0] == (
        "null: the highest w.iodepth with p99 within 1.00 ms is 37 (1.00 ms, 37.0 k a second); 38 has 1.03 ms"
    )
    assert (knees(result.data), reached(result.data)) == ([], [])


def test_tables_and_pictures_have_the_points_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(DEPTH + '[mark.deep]\n"workload.w.iodepth" = 512\n')
    Made(monkeypatch, made.points[0].setup)
    result = Result.create(made, tmp_path / "out")
    run_plan(result, Silent())
    depths = [point["settings"]["workload.w.iodepth"] for point in result.data["points"] if not point["mark"]]
    assert depths != sorted(depths)
    shown = [int(line.split()[1]) for line in result_lines(result.data) if line.strip().startswith("iodepth ")
             and line.split()[1].isdigit()]  # fmt: skip
    assert shown == sorted(depths)
    assert "the highest w.iodepth with p99" in page(result.data)
    for canvas in compose(result.data):
        assert canvas.collisions() == []


def test_a_rate_has_to_be_kept_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(RATE)
    Made(monkeypatch, made.points[0].setup)
    result = Result.create(made, tmp_path / "out")
    run_plan(result, Silent())
    (one,) = searched(result.data)
    assert one.value is not None
    assert one.beyond is not None
    assert one.value * 0.98 <= 37_000 < one.beyond * 0.98 <= one.value * 0.98 * 1.021
    (line,) = answer_lines(result.data)
    assert line.endswith("has 500 µs, and 37.0 k of them are done")


def test_nothing_and_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(DEPTH)
    runs = Made(monkeypatch, made.points[0].setup)
    for most, says in (
        (0.5, "not even the lowest w.iodepth that was tried keeps p99 within 1.00 ms: 1 has 2.00 ms"),
        (1000, "w.iodepth 256, the highest that was tried, still keeps p99 within 1.00 ms (256 µs,"),
    ):
        runs.most["null"] = most  # type: ignore[assignment]
        result = Result.create(made, tmp_path / str(most))
        run_plan(result, Silent())
        (line,) = answer_lines(result.data)
        assert line.startswith(says)


@pytest.mark.parametrize("after", range(1, 18, 2))
def test_a_search_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    made = plan(DEPTH)
    runs = Made(monkeypatch, made.points[0].setup)
    whole = Result.create(made, tmp_path / "whole")
    run_plan(whole, Silent())
    asked, runs.asked = runs.asked, []
    assert after < len(asked)

    runs.stop_after = after
    with pytest.raises(KeyboardInterrupt):
        run_plan(Result.create(made, tmp_path / "part"), Silent())
    kept = json.loads((tmp_path / "part" / "result.json").read_text())
    assert len(kept["runs"]) == after
    assert not kept["complete"]
    runs.stop_after = 10**9
    resumed = Result.resume(plan(DEPTH), tmp_path / "part")
    run_plan(resumed, Silent())
    assert runs.asked == asked
    assert resumed.data["complete"]
    assert found(resumed.data) == found(whole.data) == [("", 37, 38)]
    assert [p["settings"] for p in resumed.data["points"]] == [p["settings"] for p in whole.data["points"]]
    again = Result.resume(plan(DEPTH), tmp_path / "part")
    run_plan(again, Silent())
    assert runs.asked == asked, "nothing is left to do"


def test_another_search_is_another_plan(tmp_path: Path) -> None:
    prints = {plan(text).fingerprint for text in (DEPTH, DEPTH + 'range = "1..64"\n', DEPTH + "points = 5\n")}
    assert len(prints) == 3
    assert plan("").search is None


def test_of_several_workloads_the_one_that_is_searched_for_counts() -> None:
    one = search()
    jobs = {
        "w": {"latency_p99_ns": {"median": 0.9e6}, "iops": {"median": 10}},
        "v": {"latency_p99_ns": {"median": 9e6}, "iops": {"median": 10}},
    }
    assert one.within({"jobs": jobs, "latency_p99_ns": {"median": 9e6}}, 8)
    jobs["w"]["latency_p99_ns"]["median"] = 1.1e6
    assert not one.within({"jobs": jobs}, 8)
    assert not one.within({"jobs": {"w": {"latency_p99_ns": None}}}, 8)


def test_flushes_are_of_the_rate_that_is_kept_up_with() -> None:
    one = search(key="rate-iops")
    job = {
        "latency_p99_ns": {"median": 0.9e6},
        "iops": {"median": 880},
        "flushes_per_second": {"median": 110},
    }
    assert one.within({"jobs": {"w": job}}, 1000)
    assert not one.within({"jobs": {"w": job}}, 1100)


# ---- wishes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[target]\nsearch = "iodepth"\n', "target.search: needs `latency`"),
        ('[target]\nlatency = "1ms"\nrange = "1..2"\n', "target.range: goes with `search`"),
        ('[target]\nlatency = "1ms"\npoints = 7\n', "target.points: goes with `search`"),
        (DEPTH + "points = 2\n", "target.points: must be at least 3"),
        (DEPTH + 'range = "0..8"\n', "target.range: '0..8' must be the lowest and the highest"),
        (DEPTH + 'range = "8..8"\n', "target.range: '8..8' must be"),
        (DEPTH + 'range = "few"\n', "target.range: 'few' must be"),
        (DEPTH.replace("iodepth", "rate-iops"), "target.range: '' must be"),
        (DEPTH.replace("iodepth", "bs"), 'target.search: \'bs\' is not searched for: "workload.w.iodepth"'),
        (DEPTH.replace("iodepth", "workload.v.iodepth"), "target.search: 'workload.v.iodepth' is not"),
        (DEPTH + '[sweep]\n"workload.w.iodepth" = [1, 2]\n', "workload.w.iodepth is swept already"),
        (DEPTH.replace("[target]", "latency = false\n[target]"), "workload.w.latency: is what [target]"),
        (DEPTH.replace("[target]", '[workload.v]\nnode = "null"\ncontexts = ["io0"]\ncount = 1\n[target]'),
         "target.search: 'iodepth' is not searched for: \"workload.w.iodepth\" or \"workload.v.iodepth\""),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(text: str, says: str) -> None:
    with pytest.raises(DocumentError) as caught:
        plan(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_plan_says_how_long_it_takes_at_most() -> None:
    once = plan('runtime = "1s"\n').seconds
    assert plan('runtime = "1s"\n' + DEPTH).seconds == pytest.approx(12 * once)
    found_by = plan(DEPTH).search
    assert found_by is not None
    assert search_line(found_by) == (
        "each searched: the highest workload.w.iodepth in 1..256 with p99 within 1.00 ms, at most 12 points"
    )


def test_a_throttle_is_found(tmp_path: Path) -> None:
    """Of 2000 requests a second a queue that asks for 64,000 gets no such rate, whatever the host does."""
    results = engine.experiment.run(
        {
            "run": {"repeat": 1, "sample": "0"},
            "context": {"io0": {}},
            "blockdev": {
                "slow": {
                    "driver": "throttle",
                    "limits.iops-total": 2000,
                    "file.driver": "null",
                    "file.size": "64M",
                }
            },
            "workload": {"w": {"node": "slow", "contexts": ["io0"], "iodepth": 4, "runtime": "300ms"}},
            "target": {"latency": "1s", "search": "rate-iops", "range": "10..64000", "points": 6},
        }
    )
    assert results.data["complete"]
    (one,) = searched(results.data)
    assert isinstance(one, Searched)
    assert one.beyond is not None
    assert one.value is None or one.value < 16_000
    assert 1 <= len(results.data["points"]) <= 6
    assert "of them are done" in answer_lines(results.data)[0] or one.value is None
