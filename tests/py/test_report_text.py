"""Numbers and tables for people."""

from __future__ import annotations

import pytest

from engine.report import figures
from engine.report.table import blank_repeats, format_table, width


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, figures.NONE),
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.9, "1.00 k"),
        (1234, "1.23 k"),
        (12_345, "12.3 k"),
        (999_949, "1.00 M"),
        (9_070_000, "9.07 M"),
        (99_960_000, "100 M"),
        (3.25e9, "3.25 G"),
    ],
)
def test_counts_have_three_digits(value: float | None, text: str) -> None:
    assert figures.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (6980, "6.98 µs"),
        (1_500_000, "1.50 ms"),
        (2e9, "2.00 s"),
        (None, figures.NONE),
    ],
)
def test_durations_have_a_unit(value: float | None, text: str) -> None:
    assert figures.duration_ns(value) == text


def test_sizes_percentages_and_waiting_times() -> None:
    assert [figures.size(n) for n in (512, 4096, 1 << 30, 5000)] == ["512 B", "4 KiB", "1 GiB", "4.88 KiB"]
    assert [figures.percent(x) for x in (0, 0.004, 0.0994, 0.52, 1.0)] == [
        "0 %",
        "0.4 %",
        "9.9 %",
        "52 %",
        "100 %",
    ]
    assert [figures.seconds(x) for x in (0.4, 48, 200, 7500)] == ["0.4 s", "48 s", "3 min 20 s", "2 h 05 min"]
    assert [figures.round_count(x) for x in (0, 5e6, 1.5e6, 250e3)] == ["0", "5 M", "1.5 M", "250 k"]
    assert [figures.microseconds(x) for x in (0.1104, 12.345)] == ["0.110 µs", "12.3 µs"]
    assert figures.plural(1, "run") + figures.plural(2, "run") == "1 run2 runs"


def test_columns_are_aligned_and_empty_ones_disappear() -> None:
    lines = format_table(["name", "n", "none"], [["a", "1", ""], ["µs", "1000", ""]], left=1, indent="")
    assert lines == ["name     n", "a        1", "µs    1000"]
    assert width("µs") == 2


def test_repeated_words_are_said_once() -> None:
    rows = [["a", "x", "1"], ["a", "x", "2"], ["a", "y", "3"], ["b", "y", "4"]]
    assert blank_repeats(rows, 2) == [["a", "x", "1"], ["", "", "2"], ["", "y", "3"], ["b", "y", "4"]]
