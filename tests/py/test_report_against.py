"""`engine compare` as a picture and a page: every run, the interval, the settings; nothing overlaps."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from reports import measured, small_result

from engine import cli
from engine.experiment.compare import compare
from engine.experiment.results import Results
from engine.experiment.summary import summarise, usable
from engine.report.against import ROWS_MAX, compose

SVG = "{http://www.w3.org/2000/svg}"
Rates = list[list[float]]


def with_rates(rates: Rates, title: str = "null & <void>") -> Results:
    """A point for each list, with a run for each rate."""
    data = measured()
    run, point = data["runs"][0], data["points"][0]
    data["title"], data["runs"], data["points"] = title, [], []
    for index, values in enumerate(rates):
        name = f"iodepth {2**index}" if index < 60 else f"iodepth no. {index}"
        settings = {"workload.rand.iodepth": index}
        labels = {"workload.rand.iodepth": name}
        data["points"].append(
            {**point, "index": index, "settings": settings, "labels": labels, "title": name}
        )
        for repetition, rate in enumerate(values):
            record = {**run["record"], "engine": {**run["record"]["engine"], "iops": rate}}
            data["runs"].append(
                {**run, "point": index, "repetition": repetition, "record": record, "discarded": False}
            )
        data["points"][index]["summary"] = summarise(usable(data["runs"], index))
    return Results(Path("somewhere/result.json"), data)


def drawn(a: Results, b: Results) -> ElementTree.Element:
    canvas = compose(compare(a, b), a.data, b.data)
    assert canvas.collisions() == []
    return ElementTree.fromstring(canvas.render())


def texts(picture: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in picture.findall(f"{SVG}text")]


SAME = [100.0, 101, 102, 103, 104]
SLOW = [90.0, 91, 90, 92, 91]


def test_every_run_is_a_dot_where_its_axis_says() -> None:
    picture = drawn(with_rates([SAME, SAME]), with_rates([SLOW, SAME]))
    circles = picture.findall(f"{SVG}circle")
    assert len(circles) == 4 * 5
    ticks = {
        float(element.text.removesuffix(" %")): float(element.get("x", 0))
        for element in picture.findall(f"{SVG}text")
        if element.text and re.fullmatch(r"[0-9.]+ %", element.text)
    }
    low, high = min(ticks), max(ticks)
    assert 100 in ticks
    for circle, rate in zip(circles, [*SAME, *SLOW, *SAME, *SAME], strict=True):
        place = ticks[low] + (ticks[high] - ticks[low]) * (100 * rate / 102 - low) / (high - low)
        assert math.isclose(float(circle.get("cx", 0)), place, abs_tol=0.1)


def test_the_interval_and_what_it_rests_on_stand_in_the_picture() -> None:
    a, b = with_rates([SAME, SAME]), with_rates([SLOW, SAME])
    words = texts(drawn(a, b))
    slower = compare(a, b).differences[0]
    assert f"{slower.low:.3f} to {slower.high:.3f}" in words
    assert f"{slower.ratio:.3f}" in words
    whole = " ".join(words)
    for text in (
        "95 % interval",
        "2000 resamples, seed 1",
        "4 KiB random reads",
        "IOPS, of the median of A",
        "engine ",
    ):
        assert text in whole
    assert drawn(a, b).find(f"{SVG}desc") is not None
    again = compose(compare(a, b), a.data, b.data).render()
    assert again == compose(compare(a, b), a.data, b.data).render(), "the same every time"


def test_a_colour_says_that_a_difference_is_beyond_noise() -> None:
    picture = drawn(with_rates([SAME, SAME, SLOW]), with_rates([SLOW, SAME, SAME]))
    bars = [rect.get("fill") for rect in picture.findall(f"{SVG}rect") if rect.get("fill-opacity")]
    slower, same, faster = bars
    assert len({slower, same, faster}) == 3


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([[1.0, 1, 1]], [[1.0, 1, 1]]),
        ([[1e6, 1e6, 1e6]], [[3.0, 2, 1]]),
        ([[5.0] * 3, [1e-3] * 3], [[5.0] * 3, [1e7] * 3]),
        ([[100.0, 100]], [[100.0]]),
        ([[100.0] * 3], [[0.0] * 3]),
        ([SAME] * 4, [SAME] * 3),
        ([SAME] * (ROWS_MAX + 5), [SLOW] * (ROWS_MAX + 5)),
        ([[99_999.0, 100_001, 100_000]], [[100_002.0, 100_000, 99_998]]),
    ],
)
def test_any_rates_make_a_picture(a: Rates, b: Rates) -> None:
    drawn(with_rates(a), with_rates(b))


def test_long_titles_and_other_machines() -> None:
    a, b = with_rates([SAME], "a title that goes on " * 9), with_rates([SLOW], "another one")
    b.data["host"]["cpu_model"] = "A Processor Of Another Make With A Long Name " * 4  # type: ignore[index]
    b.data["points"][0]["title"] = "a point whose settings have a lot to say, far more than there is room for"
    words = " ".join(texts(drawn(a, b)))
    assert "Not the same: host cpu model" in words
    assert "A: vm" in words or "B: " in words


def test_what_is_in_one_alone_is_said() -> None:
    words = " ".join(texts(drawn(with_rates([SAME, SAME]), with_rates([SLOW]))))
    assert "Only in A: iodepth 2." in words
    nothing = with_rates([])
    assert "no point in common" in " ".join(texts(drawn(with_rates([SAME]), nothing)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = []
    for name, rates in (("a", [SAME, SAME]), ("b", [SLOW, SAME])):
        data: Any = with_rates(rates).data
        folders.append(str(small_result(tmp_path, data, name)))
    files = [str(tmp_path / f"ab.{suffix}") for suffix in ("html", "svg", "png")]
    options = [
        word
        for suffix, file in zip(("html", "svg", "png"), files, strict=True)
        for word in (f"--{suffix}", file)
    ]
    assert cli.main(["compare", *folders, *options, "--fail-if-slower", "5%"]) == 1
    out = capsys.readouterr().out
    assert "B is 11 % slower" in out
    assert "FAILED: iodepth 1 is slower by 11 %" in out
    for file in files:
        assert f"{file}\n" in out
        assert Path(file).stat().st_size > 2000
    html = Path(files[0]).read_text()
    assert "<title>null &amp; &lt;void&gt;: B against A</title>" in html
    assert html.count("<svg") == 1
    assert html.count("<tr>") == 1 + 2
    assert ">slower<" in html
    assert ">no difference<" in html
    assert html.count("Where A was measured") == html.count("Where B was measured") == 1
    assert not re.search(r"(?:src|href)=|@import|url\(", html)
