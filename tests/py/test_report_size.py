"""A report of 200 runs, made of real ones: small enough to be sent, with few enough elements to open."""

from __future__ import annotations

import re
from typing import Any

import pytest
from reports import measured

from engine.report.chart import MARKS_MAX
from engine.report.over_time import COLUMNS_MAX, POINTS_MAX, joined
from engine.report.page import page
from engine.report.pictures import compose

SWEPT = """
[run]
title = "Two hundred runs"
repeat = 1
sample = "10ms"
[engine]
lock-profile = true
[context.io0]
[context.io1]
[blockdev.null]
driver = "null"
size = "1G"
[blockdev.slow]
driver = "null"
size = "1G"
latency-ns = "20us"
[device.vda]
node = "null"
queues = ["io0"]
[workload.rand]
device = "vda"
rw = "randrw"
runtime = "150ms"
[sweep]
"device.vda.node" = ["null", "slow"]
"device.vda.queues" = [["io0"], ["io0", "io1"]]
"workload.rand.iodepth" = [1, 8]
"""
PAGE_BYTES_MAX = 5 << 20
ELEMENTS_MAX = 30_000  # a browser lays out some hundred thousand a second
POINTS, REPETITIONS, LONGER = 40, 5, 40


def two_hundred() -> Any:
    """Eight measured runs, repeated: as points of further depths, as repetitions, and each run's slices."""
    data = measured(SWEPT)
    real_points, real_runs = data["points"], [run for run in data["runs"] if not run["discarded"]]
    data["points"], data["runs"] = [], []
    for index in range(POINTS):
        point, run = real_points[index % 8], real_runs[index % 8]
        depth = int(point["settings"]["workload.rand.iodepth"]) << (index // 8)
        settings = {**point["settings"], "workload.rand.iodepth": depth}
        labels = {**point["labels"], "workload.rand.iodepth": f"iodepth {depth}"}
        data["points"].append(
            {
                **point,
                "index": index,
                "settings": settings,
                "labels": labels,
                "title": " · ".join(labels.values()),
            }
        )
        series = run["record"]["engine"]["series"]
        length = series[-1]["end"]
        long = [{**one, "end": one["end"] + length * n} for n in range(LONGER) for one in series]
        engine = {**run["record"]["engine"], "series": long}
        for repetition in range(REPETITIONS):
            record = {**run["record"], "engine": engine}
            data["runs"].append({**run, "point": index, "repetition": repetition, "record": record})
    return data


def test_two_hundred_runs_fit_on_a_page() -> None:
    data = two_hundred()
    assert len(data["runs"]) == POINTS * REPETITIONS == 200
    assert len(data["runs"][0]["record"]["engine"]["series"]) >= 5 * LONGER
    pictures = compose(data)
    titles = " ".join(picture.title for picture in pictures)
    for part in (
        "IOPS over time",
        "Latency over time",
        "Latencies over time",
        "by contexts and iodepth",
        "percentile",
    ):
        assert part in titles
    assert [found for picture in pictures for found in picture.collisions()] == []
    html = page(data)
    assert len(html.encode()) < PAGE_BYTES_MAX
    assert len(re.findall(r"<[a-z]", html)) < ELEMENTS_MAX


def slices(count: int) -> list[dict[str, Any]]:
    job = {"writes": 0, "p50": 5, "max": 30}
    return [
        {
            "end": n + 1.0,
            "seconds": 1.0,
            "jobs": {"w": {**job, "reads": n, "p99": 10 + n % 7, "latency": [[4, n], [8 + n % 2, 1]]}},
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("count", [1, 499, 500, 501, 36_000])
def test_joined_slices_lose_nothing(count: int) -> None:
    whole = slices(count)
    thin = joined(whole, POINTS_MAX)
    assert len(thin) <= POINTS_MAX
    assert thin[-1]["end"] == whole[-1]["end"]
    assert sum(one["seconds"] for one in thin) == count
    assert sum(one["jobs"]["w"]["reads"] for one in thin) == sum(range(count))
    assert max(one["jobs"]["w"]["p99"] for one in thin) == max(one["jobs"]["w"]["p99"] for one in whole)
    pairs = [pair for one in thin for pair in one["jobs"]["w"]["latency"]]
    assert sum(number for _, number in pairs) == sum(range(count)) + count


def test_a_day_of_slices_is_drawn_thin() -> None:
    data = measured()
    data["runs"][0]["record"]["engine"]["series"] = slices(86_400)
    data["runs"][0]["record"]["engine"]["series"][0]["jobs"]["w"]["reads"] = 1
    pictures = [picture for picture in compose(data) if "over time" in picture.title]
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.collisions() == []
        assert len(picture.render()) < 200_000
    heat = pictures[-1].render()
    assert COLUMNS_MAX < heat.count("<rect") < 4 * COLUMNS_MAX
    assert pictures[0].render().count("<circle") <= MARKS_MAX


def test_what_is_left_out_is_said() -> None:
    """Eighty points, by eight nodes: more lines and maps than are drawn."""
    data = two_hundred()
    for point in data["points"]:
        depth = (1, 8)[point["index"] % 2]
        for key, own in (("settings", depth), ("labels", f"iodepth {depth}")):
            node = f"{point[key]['device.vda.node']} {point['index'] // 8}"
            point[key] = {**point[key], "device.vda.node": node, "workload.rand.iodepth": own}
    lock = {"owner": "x", "acquisitions": 99, "contended": 9, "wait_ns": {"total_ns": 5}}
    for run in data["runs"]:
        run["record"]["engine"]["locks"] = [{**lock, "lock": f"no. {n}"} for n in range(30)]
    pictures = compose(data)
    assert [found for picture in pictures for found in picture.collisions()] == []
    texts = {picture.title: " ".join(box.text for box in picture.texts) for picture in pictures}
    for title, text in texts.items():
        if title.startswith(("IOPS against contexts", "Latency by percentile", "IOPS over time")):
            assert "more not drawn" in text, title
        if title.startswith("Locks"):
            assert "18 more, less often" in text
    maps = [text for title, text in texts.items() if title.startswith("IOPS by contexts and iodepth")]
    assert len(maps) == 4
    assert "6 more maps not drawn" in maps[-1]
