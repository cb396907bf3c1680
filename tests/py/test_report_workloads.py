"""Figures of each workload by itself, where several run at the same time: result, tables, page, curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import engine
import engine.experiment
from engine.report.curves import compose
from engine.report.experiment_table import result_lines
from engine.report.workloads import words, workload_table

MIX: dict[str, Any] = {
    "run": {"repeat": 2, "sample": "20ms"},
    "context": {"io0": {}, "io1": {}},
    "blockdev": {"null": {"driver": "null", "size": "64M"}},
    "device": {
        "data": {"node": "null", "queues": ["io0"]},
        "log": {"node": "null", "queues": ["io1"]},
    },
    "workload": {
        "reads": {"device": "data", "rw": "randread", "iodepth": 32, "count": 5000},
        "log": {"device": "log", "rw": "write", "bs": "16k", "iodepth": 1, "flush-every": 4, "count": 1000},
    },
    "sweep": {"workload.reads.iodepth": [8, 32]},
}


@pytest.fixture(scope="module")
def results() -> engine.Results:
    return engine.experiment.run(MIX)


def test_the_summary_has_each_by_itself(results: engine.Results) -> None:
    for point in results.data["points"]:
        jobs = point["summary"]["jobs"]
        assert list(jobs) == ["reads", "log"]
        assert jobs["reads"]["reads"] == {"median": 5000, "min": 5000, "max": 5000}
        assert jobs["reads"]["flushes"]["max"] == jobs["reads"]["writes"]["max"] == 0
        assert (jobs["log"]["writes"]["median"], jobs["log"]["flushes"]["median"]) == (800, 200)
        assert jobs["log"]["flushes_per_second"]["median"] > 0
        assert jobs["reads"]["flush_latency_p99_ns"] is None
        assert jobs["log"]["flush_latency_p99_ns"]["min"] > 0
        runs = [r for r in results.data["runs"] if r["point"] == point["index"] and not r["discarded"]]
        for number, job in enumerate(jobs.values()):
            records = [run["record"]["jobs"][number] for run in runs]
            rates = [record["read"]["iops"] + record["write"]["iops"] for record in records]
            assert (job["iops"]["min"], job["iops"]["max"]) == (min(rates), max(rates))
            bytes_ = [record["read"]["bw_bytes"] + record["write"]["bw_bytes"] for record in records]
            assert job["bytes_per_second"]["max"] == max(bytes_)
            worst = [max(way["clat_ns"]["percentile"]["99.000000"] for way in (r["read"], r["write"])
                         if way["total_ios"]) for r in records]  # fmt: skip
            assert job["latency_p99_ns"]["max"] == max(worst)
        worst_of_all = max(job["latency_p99_ns"]["max"] for job in jobs.values())
        assert point["summary"]["latency_p99_ns"]["max"] == worst_of_all


def test_as_columns(results: engine.Results) -> None:
    table = results.table("workloads")
    assert table["workload"] == ["reads", "log"] * 2
    assert table["workload.reads.iodepth"] == [8, 8, 32, 32]
    assert table["flushes"] == [0, 200, 0, 200]
    assert all(rate > 0 for rate in table["iops"])
    assert "jobs" not in results.table("points")
    with pytest.raises(ValueError, match="'points', 'runs' and 'workloads'"):
        results.table("jobs")


def test_in_the_table_and_the_page(results: engine.Results, tmp_path: Path) -> None:
    text = "\n".join(result_lines(results.data))
    assert "4 KiB random reads, depth 32" in text
    assert "16 KiB sequential writes, a flush every 4, depth 1" in text
    head, rows, left = workload_table(results.data)
    assert len(rows) == 4
    assert {len(row) for row in rows} == {len(head)}
    assert head[left - 1] == "what"
    page = results.report(tmp_path / "page.html").read_text()
    assert "Each workload by itself" in page
    assert page.count("16 KiB sequential writes, a flush every 4, depth 1") == 2
    pictures = [canvas.render() for canvas in compose(results.data)]
    assert any("reads" in picture and "log" in picture for picture in pictures)


def test_one_workload_needs_no_second_table() -> None:
    alone = {**MIX, "workload": {"reads": MIX["workload"]["reads"]}}
    alone["run"] = {"repeat": 1}
    results = engine.experiment.run(alone)
    assert workload_table(results.data)[1] == []
    assert "Each workload" not in results._repr_html_()
    assert list(results.data["points"][0]["summary"]["jobs"]) == ["reads"]


def test_a_result_without_figures_of_each_is_shown() -> None:
    """From before there were any."""
    results = engine.experiment.run({**MIX, "run": {"repeat": 1}, "sweep": {}})
    for point in results.data["points"]:
        del point["summary"]["jobs"]
    assert workload_table(results.data)[1] == []
    assert results.table("workloads") == {}
    assert "IOPS" in results._repr_html_()


def test_what_a_replay_did(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("fio version 3 iolog\n0 f read 0 512\n0 f sync 0 0\n9 f read 0 512\n")
    tree = {**MIX, "workload": {"w": {"device": "data", "replay": str(tmp_path / "a.log"), "iodepth": 2}}}
    results = engine.experiment.run({**tree, "sweep": {"workload.w.replay-speed": [1, 3, "max"]}})
    rows = workload_table(results.data)[1]
    assert [row[-1] for row in rows] == ["2 reads, 1 flush"] * 3
    assert [words(p["options"]["workloads"][0]) for p in results.data["points"]] == [
        "replay of a.log, depth 2",
        "replay of a.log 3 times as fast, depth 2",
        "replay of a.log as fast as it goes, depth 2",
    ]
