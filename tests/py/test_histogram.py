"""Histogram mathematics, against plain lists of values and against the native side."""

from __future__ import annotations

import json
import math
import random
import statistics
from typing import Any

import pytest

import engine
from engine._native import ffi, lib
from engine.histogram import BUCKETS, Histogram, bucket_of, low_of

EDGES = [0, 1, 31, 32, 63, 64, 65, 66, 127, 128, 129, 1023, 1024, 2**32 - 1, 2**32, 2**63, 2**64 - 1]


def sample(seed: int, count: int) -> list[int]:
    """Durations over nine decades, as latencies are spread."""
    rng = random.Random(seed)
    return [int(10 ** rng.uniform(0, 9)) for _ in range(count)]


def nearest_rank(values: list[int], percent: float) -> int:
    rank = max(1, math.ceil(round(percent * len(values) / 100, 6)))
    return sorted(values)[rank - 1]


def native_of(histogram: Histogram) -> Any:
    """An `engine_histogram *` with the same content."""
    native = ffi.new("engine_histogram *")
    for low, _, count in histogram.buckets():
        native.buckets[bucket_of(low)] = count
    native.count, native.sum = histogram.count, histogram.sum
    native.min = histogram.min if histogram.count else 2**64 - 1
    native.max = histogram.max
    return native


def test_buckets_tile_the_numbers() -> None:
    """By the definition in aio.h: bucket i counts (32 + m) << e up to (33 + m) << e."""
    for index in range(64):
        assert low_of(index) == index
    for index in range(64, BUCKETS + 1):
        exponent, m = index // 32 - 1, index % 32
        assert low_of(index) == (32 + m) << exponent
    assert low_of(BUCKETS) == 2**64
    for index in range(BUCKETS):
        low, high = low_of(index), low_of(index + 1)
        assert low < high
        assert bucket_of(low) == bucket_of(high - 1) == index
        assert high - low <= max(1, low / 32)


@pytest.mark.parametrize("value", EDGES)
def test_a_value_is_in_its_bucket(value: int) -> None:
    histogram = Histogram([value])
    [(low, high, count)] = histogram.buckets()
    assert low <= value < high
    assert count == 1
    assert histogram.min == histogram.max == histogram.percentile(50) == value
    assert histogram.mean == float(value)


def test_an_empty_histogram() -> None:
    empty = Histogram()
    assert (empty.count, empty.sum, empty.min, empty.max) == (0, 0, 0, 0)
    assert (empty.mean, empty.stddev) == (0.0, 0.0)
    assert empty.percentiles([0, 50, 100]) == [0, 0, 0]
    assert list(empty.buckets()) == []
    assert Histogram.from_dict(empty.to_dict()) == empty


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 10, 999, 1000, 5000])
def test_figures_against_the_values_themselves(seed: int, count: int) -> None:
    values = sample(seed, count)
    histogram = Histogram(values)
    assert histogram.count == count
    assert histogram.sum == sum(values)
    assert (histogram.min, histogram.max) == (min(values), max(values))
    assert histogram.mean == pytest.approx(statistics.fmean(values))
    # Each value is known to 1/64 of itself.
    blur = math.sqrt(sum(value * value for value in values) / count) / 64 + 1
    assert histogram.stddev == pytest.approx(statistics.pstdev(values), abs=blur)
    for percent in (0, 0.1, 1, 5, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100):
        exact = nearest_rank(values, percent)
        found = histogram.percentile(percent)
        assert exact <= found <= exact * (1 + 1 / 32), percent
        assert bucket_of(found) == bucket_of(exact)


def test_ranks_do_not_wobble() -> None:
    """99.9 % of a thousand is the 999th, though 99.9 / 100 * 1000 is a little more in floating point."""
    histogram = Histogram([1] * 999 + [1000])
    assert histogram.percentile(99.9) == 1
    assert histogram.percentile(99.91) == 1000


def test_percentiles_keep_the_order_asked_for() -> None:
    histogram = Histogram(range(100))
    assert histogram.percentiles([99, 1, 50, 50]) == [histogram.percentile(p) for p in (99, 1, 50, 50)]


@pytest.mark.parametrize("percent", [-0.1, 100.1, float("nan")])
def test_percent_out_of_range(percent: float) -> None:
    with pytest.raises(engine.InvalidArgument, match="percent: must be from 0 to 100"):
        Histogram([1]).percentile(percent)


def test_recording() -> None:
    histogram = Histogram()
    histogram.record(7, 3)
    histogram.record(9, 0)
    assert (histogram.count, histogram.sum, histogram.max) == (3, 21, 7)
    for value in (-1, 2**64):
        with pytest.raises(engine.InvalidArgument, match="takes 0 to"):
            histogram.record(value)
    with pytest.raises(engine.InvalidArgument, match="count"):
        histogram.record(1, -1)


def test_merging_is_recording_together() -> None:
    parts = [sample(seed, 500) for seed in range(4)]
    merged = Histogram()
    for part in parts:
        merged.merge(Histogram(part))
    assert merged == Histogram(value for part in parts for value in part)
    before = merged.to_dict()
    merged.merge(Histogram())
    assert merged.to_dict() == before


def test_json_keeps_everything() -> None:
    histogram = Histogram(sample(9, 1000))
    again = Histogram.from_dict(json.loads(json.dumps(histogram.to_dict())))
    assert again == histogram
    assert again.to_dict() == histogram.to_dict()


def test_equality_and_text() -> None:
    assert Histogram([1, 2]) != Histogram([1, 3])
    assert Histogram([1]) != "a histogram"
    assert "p99=200" in repr(Histogram([100, 200]))
    with pytest.raises(TypeError):
        hash(Histogram())


def test_the_native_side_agrees() -> None:
    for seed in range(3):
        histogram = Histogram(sample(seed, 4096))
        native = native_of(histogram)
        assert Histogram.from_native(native) == histogram
        for share in (0.0, 0.25, 0.5, 0.75, 1.0):  # exact in binary: no rank is in doubt
            assert lib.engine_histogram_percentile(native, share) == histogram.percentile(share * 100)


def test_merging_agrees_with_the_native_side() -> None:
    one, other = Histogram(sample(1, 300)), Histogram(sample(2, 700))
    native_one, native_other = native_of(one), native_of(other)
    lib.engine_histogram_merge(native_one, native_other)
    one.merge(other)
    assert Histogram.from_native(native_one) == one
