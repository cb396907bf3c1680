"""HdrHistogram's encoding, against its own Python library."""

from __future__ import annotations

import random

import pytest
from hdrh.histogram import HdrHistogram

import engine
from engine.histogram import Histogram

HOUR_NS = 3_600_000_000_000


def sample(seed: int, count: int) -> Histogram:
    rng = random.Random(seed)
    return Histogram(int(10 ** rng.uniform(0, 11)) for _ in range(count))


@pytest.mark.parametrize("histogram", [Histogram(), Histogram([0]), Histogram([63, 64, 65]), sample(1, 5000)])
def test_its_own_library_reads_the_same_percentiles(histogram: Histogram) -> None:
    theirs = HdrHistogram.decode(histogram.to_hdr())
    assert theirs.get_total_count() == histogram.count
    for percent in (1, 50, 90, 99, 99.9):
        ours = histogram.percentile(percent)
        if ours != histogram.max:  # which is exact here alone
            assert theirs.get_value_at_percentile(percent) == ours


@pytest.mark.parametrize("seed", range(4))
def test_back_and_forth(seed: int) -> None:
    histogram = sample(seed, 1000)
    again = Histogram.from_hdr(histogram.to_hdr())
    assert list(again.buckets()) == list(histogram.buckets())
    assert again.to_hdr() == histogram.to_hdr()


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_what_its_library_wrote_is_read(digits: int) -> None:
    theirs = HdrHistogram(1, HOUR_NS, digits)
    rng = random.Random(digits)
    values = [int(10 ** rng.uniform(0, 11)) for _ in range(2000)]
    for value in values:
        theirs.record_value(value)
    text = theirs.encode()
    ours = Histogram.from_hdr(text.decode() if isinstance(text, bytes) else text)
    assert ours.count == len(values)
    for percent in (50, 90, 99):
        expected = theirs.get_value_at_percentile(percent)
        assert ours.percentile(percent) == pytest.approx(expected, rel=0.11 if digits == 1 else 0.04)


def test_both_merge_alike() -> None:
    a, b = sample(5, 700), sample(6, 900)
    theirs = HdrHistogram.decode(a.to_hdr())
    theirs.add(HdrHistogram.decode(b.to_hdr()))
    a.merge(b)
    assert theirs.get_total_count() == a.count
    assert theirs.get_value_at_percentile(99) == a.percentile(99)


@pytest.mark.parametrize("text", ["", "no base64!", "AAAA", sample(1, 50).to_hdr()[:40], "HISTFAAAAAE="])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(engine.InvalidArgument, match="not an encoded HdrHistogram"):
        Histogram.from_hdr(text)
