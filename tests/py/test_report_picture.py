"""The picture: well-formed, nothing overlaps, and it says what the result says."""

from __future__ import annotations

import itertools
from typing import Any
from xml.etree import ElementTree

import pytest

from engine.experiment.series import COARSER
from engine.experiment.summary import summarise
from engine.histogram import bucket_of, low_of
from engine.report.chart import time_ticks
from engine.report.experiment_table import note_lines, result_lines
from engine.report.maps import heat_map
from engine.report.picture import compose, draw, nice_ticks
from engine.report.svg import Canvas, text_width, wrap

SVG = "{http://www.w3.org/2000/svg}"


def run(point: int, iops: float, wait: float = 0.0, **more: Any) -> dict[str, Any]:
    block = {"percentile": {"50.000000": 7000, "99.000000": 12000, "99.900000": 30000}}
    contexts = [{"name": "io0", "requested_cpus": [0], "effective_cpus": more.pop("ran_on", [0])}]
    engine = {
        "iops": iops,
        "cpu": {"us_per_request": 1e6 / iops},
        "lock_wait": {"share": wait},
        "steal_percent": 0.1,
        "other_percent": more.pop("other", 0.0),
        "clock": "tsc",
        "contexts": contexts,
    }
    idle = {"iops": 0, "bw_bytes": 0, "total_ios": 0, "clat_ns": {}}
    job = {
        "jobname": "w",
        "job_runtime": 1000,
        "read": {**idle, "iops": iops, "clat_ns": block},
        "write": idle,
        "trim": idle,
        "sync": {"total_ios": 0, "lat_ns": {}},
    }
    record = {"jobs": [job], "engine": engine}
    return {"point": point, "discarded": False, "marked": False, "record": record, **more}


def result(
    sweep: dict[str, list[str]], scales: list[float], mark: bool = False, title: str = "A title"
) -> dict[str, Any]:
    """A result with three made-up runs for each point, as `engine run` keeps it."""
    keys = list(sweep)
    settings = [dict(zip(keys, values, strict=True)) for values in itertools.product(*sweep.values())]
    points = [{"labels": labels, "mark": None, "mark_label": ""} for labels in settings]
    if mark:
        points += [
            {"labels": {keys[0]: value}, "mark": "two-processes", "mark_label": "two processes"}
            for value in sweep[keys[0]]
        ]
    workload = {"rw": "randread", "bs": 4096, "iodepth": 64, "rate_iops": 0, "device": "vda", "runtime": 1.0}
    options = {
        "workloads": [workload],
        "contexts": [{"name": "io0", "poll_max_ns": None}],
        "nodes": [{"name": "n", "options": {"driver": "raw", "file.filename": "a.img"}}],
    }
    runs = []
    for index, point in enumerate(points):
        own = [
            run(index, scales[index % len(scales)] * factor, 0.5 * (index % 2))
            for factor in (0.97, 1.0, 1.02)
        ]
        point |= {"index": index, "options": options, "summary": summarise(own)}
        runs += own
    return {
        "title": title,
        "quick": False,
        "complete": True,
        "started": "2026-11-24T11:00:00+0000",
        "host": {
            "hostname": "host",
            "cpu_model": "AMD EPYC",
            "kernel": "Linux 6.18",
            "cpus_allowed": [0, 1],
            "virtual_machine": True,
        },
        "build": {
            "version": "0.1.0",
            "compiler": "GCC 12.2",
            "liburing": "2.3",
            "optimised": True,
            "sanitized": False,
        },
        "placement": [{"name": "io0", "poll_max_ns": 32768}],
        "plan": {"points": len(points), "repeat": 3, "sweep": keys},
        "points": points,
        "runs": runs,
    }


BIG_LOCK = {
    "device.vda.node": ["null node", "null node, 20 µs", "page cache"],
    "engine.locking": ["per-node locks", "one big lock"],
    "device.vda.queues": ["1 context", "2 contexts"],
}
SWEEPS = [
    ({}, [1e6]),
    ({"workload.w.iodepth": ["iodepth 1", "iodepth 8", "iodepth 64"]}, [1e5, 8e5, 4e6]),
    ({"engine.locking": ["global", "per-node"], "workload.w.bs": ["4k", "64k", "1M"]}, [1e6, 2e5, 1.3e4]),
    (BIG_LOCK, [9.2e6, 18.1e6, 9e6, 4.8e6]),
    ({**BIG_LOCK, "workload.w.iodepth": [f"iodepth {2**n}" for n in range(8)]}, [1.0, 9.99e5, 1e9]),
]


@pytest.mark.parametrize(("sweep", "scales"), SWEEPS)
def test_no_text_overlaps_or_leaves_the_picture(sweep: dict[str, list[str]], scales: list[float]) -> None:
    canvas = compose(result(sweep, scales, mark=bool(sweep)))
    assert canvas.collisions() == []


def test_long_names_do_not_overlap_either() -> None:
    sweep = {
        "a.b.first": ["a very long name of a device, longer than anyone would choose " * 2],
        "a.b.second": ["locks of each node, each with a long name", "x"],
        "a.b.third": ["1 context", "a somewhat longer label than usual"],
    }
    data = result(sweep, [1e6, 2e6], mark=True, title="A title that goes on and on " * 6)
    assert compose(data).collisions() == []


@pytest.mark.parametrize(("sweep", "scales"), SWEEPS)
def test_the_picture_is_well_formed_and_self_contained(
    sweep: dict[str, list[str]], scales: list[float]
) -> None:
    text = draw(result(sweep, scales, mark=bool(sweep), title='<locks> & "quotes"'))
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert root.findtext(f"{SVG}title") == '<locks> & "quotes"'
    assert "href" not in text
    assert "nan" not in text
    background = root.find(f"{SVG}rect")
    assert background is not None
    assert background.get("fill") == "#ffffff"


def test_it_says_host_settings_versions_and_every_figure() -> None:
    data = result(BIG_LOCK, [9.2e6, 18.1e6, 9e6, 4.8e6], mark=True)
    texts = [box.text for box in compose(data).texts]
    joined = " ".join(texts)
    for words in (
        "host: AMD EPYC",
        "2 CPUs (virtual machine)",
        "Linux 6.18",
        "2026-11-24",
        "iodepth 64 per queue",
        "4 KiB random reads",
        "closed loop",
        "poll_max_ns 32768",
        "engine 0.1.0",
        "liburing 2.3",
        "Page cache:",
    ):
        assert words in joined
    assert texts.count("two processes") == 3
    assert "18.1 M" in texts
    assert "50 %" in texts


def test_a_bar_for_each_point_and_a_dot_for_each_run() -> None:
    data = result(BIG_LOCK, [1e6], mark=True)
    root = ElementTree.fromstring(draw(data))
    assert len(root.findall(f"{SVG}circle")) == len(data["runs"]) == 45
    assert len(root.findall(f"{SVG}rect")) == 1 + len(data["points"])


def test_bars_are_in_proportion() -> None:
    root = ElementTree.fromstring(draw(result({"a.b": ["one", "two"]}, [1e6, 2e6])))
    one, two = [float(rect.get("width", 0)) for rect in root.findall(f"{SVG}rect")[1:]]
    assert two == pytest.approx(2 * one, rel=0.01)


def test_discarded_runs_are_not_drawn_and_disturbed_ones_are_marked() -> None:
    data = result({"a.b": ["one"]}, [1e6])
    data["runs"].append(run(0, 5e6, discarded=True))
    data["runs"][0]["marked"] = True
    data["points"][0]["summary"] = summarise(data["runs"][:3])
    texts = [box.text for box in compose(data).texts]
    assert "1 M*" in texts or "1.00 M*" in texts
    assert "5.00 M" not in texts
    assert "1 run discarded" in " ".join(note_lines(data))
    assert "1 run kept with more than 2 % steal" in " ".join(note_lines(data))


def test_a_result_without_runs_can_be_drawn() -> None:
    data = result({"a.b": ["one"]}, [1e6])
    data["runs"] = []
    data["points"][0]["summary"] = None
    assert "no run has ended" in draw(data)
    assert result_lines(data) == ["  no run has ended"]


def test_the_table_holds_each_row_against_its_base() -> None:
    data = result(BIG_LOCK, [10e6, 20e6, 10e6, 5e6], mark=True)
    lines = result_lines(data)
    ratios = [line.split("…")[1].split()[2] for line in lines[1:]]
    assert ratios[:4] == ["1.00", "2.00", "1.00", "0.50"]
    assert len(lines) == 16
    assert [bool("two processes" in line) for line in lines[1:6]] == [False] * 4 + [True]


def test_notes_say_what_page_cache_and_two_cpus_mean() -> None:
    data = result({"a.b": ["one"]}, [1e6])
    notes = " ".join(note_lines(data))
    assert "served from memory" in notes
    assert "nothing of how it scales" in notes
    data["runs"][0] = run(0, 1e6, ran_on=[1])
    assert "context io0 did not run on the CPUs" in " ".join(note_lines(data))
    data["runs"][1] = run(0, 1e6, other=40.0)
    assert "other processes took up to 40 % of the CPU time in 1 run" in " ".join(note_lines(data))
    data["complete"] = False
    assert "did not run to its end" in " ".join(note_lines(data))


@pytest.mark.parametrize("highest", [1.0, 7.0, 99.0, 4.81e6, 18.2e6, 1e9])
def test_ticks_are_few_and_round(highest: float) -> None:
    ticks = nice_ticks(highest)
    assert ticks[0] == 0
    assert 3 <= len(ticks) <= 7
    assert highest / 2 < ticks[-1] <= highest * (1 + 1e-9)
    step = f"{ticks[1]:e}"
    assert step[0] in "125"


def test_wrapped_text_fits() -> None:
    lines = wrap("some words that need more than a single line of text " * 3, 12, 200)
    assert len(lines) > 2
    assert all(text_width(line, 12) <= 200 for line in lines)


def test_collisions_are_found() -> None:
    canvas = Canvas(100, "t", "d")
    canvas.height = 50
    canvas.text(10, 20, "one", 12)
    canvas.text(20, 22, "two", 12)
    canvas.text(90, 40, "outside", 12)
    assert canvas.collisions() == [("one", "two"), ("outside", "")]


@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.5, 7.9, 60.0, 86_400.0])
def test_times_on_an_axis_are_round_and_few(seconds: float) -> None:
    ticks = time_ticks(seconds)
    assert 3 <= len(ticks) <= 8
    assert ticks[0] == (0, "0 s")
    assert ticks[-1][0] <= seconds * 1.000001
    assert all(len(text.replace(".", "").strip("0 s")) <= 2 for _, text in ticks)


def test_a_heat_map_has_no_gaps_between_neighbouring_buckets() -> None:
    """Four buckets for each power of two are not equally high on a logarithmic axis."""
    lows = [low_of(bucket << COARSER) for bucket in range(bucket_of(1000) >> COARSER, 100)]
    job = {"reads": 9, "writes": 0, "latency": [[low, 1] for low in lows]}
    slices = [{"end": end, "seconds": 1.0, "jobs": {"w": job}} for end in (1.0, 2.0)]
    canvas = heat_map("Latencies over time", slices, "w")
    assert canvas is not None
    assert canvas.collisions() == []
    cells = [
        (float(rect.get("x", 0)), float(rect.get("y", 0)), float(rect.get("height", 0)))
        for rect in ElementTree.fromstring(canvas.render()).iter("{http://www.w3.org/2000/svg}rect")
        if rect.get("rx") is None
    ]
    column = sorted((y, height) for x, y, height in cells if x == cells[0][0])
    assert len(column) == len(lows)
    for (y, height), (below, _) in itertools.pairwise(column):
        assert y + height == pytest.approx(below, abs=0.02)
