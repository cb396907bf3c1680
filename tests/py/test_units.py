"""Sizes and times as text."""

from __future__ import annotations

import pytest

import engine
from engine.units import parse_size, parse_time_ns


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("512B", 512),
        ("4k", 4096),
        ("4K", 4096),
        ("4kB", 4096),
        ("64KiB", 65536),
        ("64Ki", 65536),
        ("1m", 1 << 20),
        ("1.5M", 3 << 19),
        ("1 GiB", 1 << 30),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("7E", 7 << 60),
        ("0.1k", 102),  # 102.4: the fraction of a byte is cut off
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_number_is_a_size() -> None:
    assert parse_size(4096) == 4096


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k",
        "4kk",
        "4x",
        "-1",
        "+1",
        "1e3",
        "0x10",
        "1.",
        ".5",
        "1,5k",
        " 4k",
        "4k ",
        "4kbit",
        "٤k",
        "8E",
        -1,
    ],
)
def test_what_is_not_a_size(text: str | int) -> None:
    with pytest.raises(engine.InvalidArgument, match="is not a size such as 4k"):
        parse_size(text)


@pytest.mark.parametrize("value", [None, True, 1.5, b"4k"])
def test_what_is_not_even_a_text(value: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("100ns", 100),
        ("20us", 20_000),
        ("1.5ms", 1_500_000),
        ("5s", 5_000_000_000),
        ("0.1s", 100_000_000),
        ("2min", 120_000_000_000),
        ("1h", 3_600_000_000_000),
        ("1.9ns", 1),
    ],
)
def test_times(text: str, nanoseconds: int) -> None:
    assert parse_time_ns(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "5", "0.5", "s", "5 seconds", "-1s", "5S", "1d", "99999999h"])
def test_what_is_not_a_time(text: str) -> None:
    with pytest.raises(engine.InvalidArgument, match="is not a time with its unit"):
        parse_time_ns(text)


def test_sizes_agree_with_the_native_side(eng: engine.Engine) -> None:
    for text in ("1", "512b", "4k", "1.5M", "64KiB", "3G"):
        with eng.open(driver="null", size=text) as node:
            assert node.size == parse_size(text)
