"""`engine report`: the page and its charts: nothing overlaps, nothing comes from elsewhere, all is there."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import engine
from engine import cli
from engine.report.curves import SERIES_MAX
from engine.report.page import page
from engine.report.pictures import charts, compose

EXPERIMENT = """
[run]
title = "Depths & <nodes>"
repeat = 3
[context.io0]
[blockdev.null]
driver = "null"
size = "1G"
[blockdev.slow]
driver = "null"
size = "1G"
latency-ns = "20us"
[workload.rand]
node = "null"
contexts = ["io0"]
count = 1000
[sweep]
"workload.rand.node" = ["null", "slow"]
"workload.rand.iodepth" = [1, 4, 16]
[labels]
slow = "a node that takes 20 µs for each request, and whose name is far too long for a legend"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    (place / "depth.toml").write_text(EXPERIMENT)
    assert cli.main(["run", str(place / "depth.toml"), "-o", str(place / "out"), "--allow-debug-build"]) == 0
    return place / "out"


@pytest.fixture
def data(folder: Path) -> Any:
    return json.loads(json.dumps(engine.load_results(folder).data))


def test_no_text_meets_another(data: Any) -> None:
    canvases = compose(data)
    assert len(canvases) == 3
    for canvas in canvases:
        assert canvas.collisions() == []
        ElementTree.fromstring(canvas.render())


def test_a_chart_has_each_point(data: Any) -> None:
    rate, latency, percentiles = (ElementTree.fromstring(text) for text in charts(data))
    svg = "{http://www.w3.org/2000/svg}"
    assert len(rate.findall(f"{svg}circle")) == len(latency.findall(f"{svg}circle")) == 6
    # From the median on: 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99.
    assert len(percentiles.findall(f"{svg}circle")) == 6 * 11
    texts = {element.text for element in rate.findall(f"{svg}text")}
    assert {"IOPS against iodepth", "1", "4", "16", "iodepth"} <= texts


def test_values_lie_where_their_axis_says(data: Any) -> None:
    """The circles of the rate chart, against the labelled lines of its axis."""
    for point, rate in zip(data["points"], (10.0, 20.0, 40.0, 80.0, 90.0, 100.0), strict=True):
        point["summary"]["iops"] = {"median": rate, "min": rate, "max": rate}
    chart = ElementTree.fromstring(charts(data)[0])
    svg = "{http://www.w3.org/2000/svg}"
    ticks = {
        float(text.text): float(text.get("y", 0)) - 4
        for text in chart.findall(f"{svg}text")
        if text.get("text-anchor") == "end" and text.text
    }
    assert 0 in ticks
    places = [float(circle.get("cy", 0)) for circle in chart.findall(f"{svg}circle")]
    for value, y in zip((10.0, 20.0, 40.0, 80.0, 90.0, 100.0), places, strict=True):
        assert math.isclose(y, ticks[0] + (ticks[100] - ticks[0]) * value / 100, abs_tol=0.1)


@pytest.mark.parametrize("rates", [(1.0, 1, 1), (1e-3, 5e6, 2e7), (999.0, 1000, 1001)])
def test_any_rates_make_a_chart(data: Any, rates: tuple[float, ...]) -> None:
    for number, point in enumerate(data["points"]):
        rate = rates[number % 3]
        point["summary"]["iops"] = {"median": rate, "min": rate, "max": rate}
    for canvas in compose(data):
        assert canvas.collisions() == []


def test_the_page_needs_nothing_else(data: Any) -> None:
    html = page(data)
    assert not re.search(r"(?:src|href)=|@import|url\(", html)
    assert "<title>Depths &amp; &lt;nodes&gt;</title>" in html
    assert html.count("<svg") == 4
    assert html.count("<tr>") == 1 + 6
    assert "prefers-color-scheme: dark" in html
    assert "latency-ns = &quot;20us&quot;" in html
    assert "<script" not in html


def test_two_hundred_runs_stay_small(data: Any) -> None:
    data["runs"] = data["runs"] * 12
    assert len(data["runs"]) >= 200
    assert len(page(data)) < 1 << 20


def test_no_numbers_no_chart_of_them(data: Any) -> None:
    data["plan"]["sweep"] = ["workload.rand.node"]
    assert len(compose(data)) == 1
    data["runs"] = []
    assert compose(data) == []


def test_many_points_are_not_all_drawn(data: Any) -> None:
    point = data["points"][0]
    data["points"] = [
        {**point, "index": 0, "labels": {"workload.rand.node": f"n{i}", "workload.rand.iodepth": "1"}}
        for i in range(40)
    ]
    canvas = compose(data)[-1]
    assert canvas.render().count('stroke-width="2"') <= SERIES_MAX * 12
    assert canvas.collisions() == []


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(folder), "--svg", str(tmp_path / "svg")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"page     {folder / 'report.html'}"
    assert len(out) == 5
    assert all(Path(line.split()[1]).stat().st_size > 1000 for line in out)
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "No such file or directory: give a folder that `engine run` has made" in capsys.readouterr().err
