"""Log-linear histograms of nanoseconds, laid out as engine/aio.h says; here in plain Python, for reports.

A histogram is not guarded: it is a snapshot that belongs to whoever asked for it.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engine.errors import invalid

BUCKETS = 1920
_LINEAR_BITS = 5  # 32 buckets for each power of two: a value is known to about 3 %
_LINEAR = 2 << _LINEAR_BITS  # below it each value has its own bucket
_EMPTY_MIN = 2**64 - 1


def bucket_of(value: int) -> int:
    """The bucket that counts a value from 0 to 2^64 - 1."""
    if value < _LINEAR:
        return value
    exponent = value.bit_length() - 1 - _LINEAR_BITS
    return (exponent << _LINEAR_BITS) + (value >> exponent)


def low_of(bucket: int) -> int:
    """The lowest value of a bucket; that of the next one is where it ends."""
    if bucket < _LINEAR:
        return bucket
    exponent = (bucket >> _LINEAR_BITS) - 1
    return ((bucket & (1 << _LINEAR_BITS) - 1) + (1 << _LINEAR_BITS)) << exponent


class Histogram:
    """How often each duration occurred, in nanoseconds. Histograms add up exactly: see `merge`."""

    __slots__ = ("_buckets", "_max", "_min", "count", "sum")

    def __init__(self, values: Iterable[int] = ()) -> None:
        self.count = 0
        self.sum = 0
        self._min = _EMPTY_MIN
        self._max = 0
        self._buckets = array("Q", bytes(8 * BUCKETS))
        for value in values:
            self.record(value)

    @classmethod
    def from_native(cls, native: Any) -> Histogram:
        """A copy of an `engine_histogram`."""
        from engine._native import ffi

        self = cls.__new__(cls)
        self.count, self.sum = native.count, native.sum
        self._min, self._max = native.min, native.max
        self._buckets = array("Q")
        self._buckets.frombytes(ffi.buffer(native.buckets))
        return self

    def record(self, value: int, count: int = 1) -> None:
        """Counts a value (0 to 2^64 - 1 ns) `count` times."""
        if not 0 <= value < 2**64:
            raise invalid(f"a histogram takes 0 to 2^64 - 1 ns, not {value}", "value")
        if count < 0:
            raise invalid(f"count: must be at least 0, not {count}", "count")
        if count == 0:
            return
        self._buckets[bucket_of(value)] += count
        self.count += count
        self.sum += value * count
        self._min = min(self._min, value)
        self._max = max(self._max, value)

    def merge(self, other: Histogram) -> None:
        """Adds `other` into this one, as if all values had been recorded here."""
        self._buckets = array("Q", map(int.__add__, self._buckets, other._buckets))
        self.count += other.count
        self.sum += other.sum
        self._min = min(self._min, other._min)
        self._max = max(self._max, other._max)

    def since(self, before: Histogram) -> Histogram:
        """What came after `before`, an earlier state of this one. Its min and max are known to the bucket."""
        later = Histogram()
        pairs = zip(self._buckets, before._buckets, strict=True)
        later._buckets = array("Q", (max(0, now - then) for now, then in pairs))
        later.count = sum(later._buckets)
        later.sum = self.sum - before.sum
        filled = list(later.buckets())
        if filled:
            later._min, later._max = filled[0][0], min(filled[-1][1] - 1, self._max)
        return later

    @property
    def min(self) -> int:
        """The smallest value, exact; 0 when empty."""
        return self._min if self.count else 0

    @property
    def max(self) -> int:
        """The largest value, exact; 0 when empty."""
        return self._max

    @property
    def mean(self) -> float:
        """Exact; 0.0 when empty."""
        return self.sum / self.count if self.count else 0.0

    @property
    def stddev(self) -> float:
        """Of all values (not of a sample), each taken at the middle of its bucket; 0.0 when empty."""
        if not self.count:
            return 0.0
        middles = [((low + high - 1) / 2, count) for low, high, count in self.buckets()]
        mean = sum(middle * count for middle, count in middles) / self.count
        return math.sqrt(sum(count * (middle - mean) ** 2 for middle, count in middles) / self.count)

    def percentile(self, percent: float) -> int:
        """The value that `percent` (0.0 to 100.0) of all values do not exceed, by nearest rank.

        Known to the bucket: it is the bucket's largest value, and never above `max`; 0 when empty.
        """
        return self.percentiles((percent,))[0]

    @property
    def p50(self) -> int:
        return self.percentile(50)

    @property
    def p90(self) -> int:
        return self.percentile(90)

    @property
    def p95(self) -> int:
        return self.percentile(95)

    @property
    def p99(self) -> int:
        return self.percentile(99)

    @property
    def p999(self) -> int:
        return self.percentile(99.9)

    def percentiles(self, percents: Iterable[float]) -> list[int]:
        """The same for several, in one pass; in the order given."""
        wanted = list(percents)
        for percent in wanted:
            if not 0 <= percent <= 100:
                raise invalid(f"percent: must be from 0 to 100, not {percent!r}", "percent")
        found = [0] * len(wanted)
        if not self.count:
            return found
        # Rounded first: 99.9 % of 1000 is rank 999, and not 1000 for the last bit of a product.
        ranks = sorted((max(1, math.ceil(round(p * self.count / 100, 6))), i) for i, p in enumerate(wanted))
        seen = at = 0
        for _, high, count in self.buckets():
            seen += count
            while at < len(ranks) and ranks[at][0] <= seen:
                found[ranks[at][1]] = min(high - 1, self._max)
                at += 1
        return found

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """(low, high, count) of each bucket that is not empty, ascending: low <= value < high."""
        for index, count in enumerate(self._buckets):
            if count:
                yield low_of(index), low_of(index + 1), count

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back without loss."""
        return {
            "count": self.count,
            "sum": self.sum,
            "min": self.min,
            "max": self.max,
            "mean": self.mean,
            "stddev": self.stddev,
            "buckets": [list(bucket) for bucket in self.buckets()],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Histogram:
        self = cls()
        for low, _, count in data["buckets"]:
            self._buckets[bucket_of(low)] += count
        self.count, self.sum = data["count"], data["sum"]
        if self.count:
            self._min, self._max = data["min"], data["max"]
        return self

    def to_hdr(self) -> str:
        """In HdrHistogram's encoding (version 2, compressed, base64): its percentiles are these."""
        from engine._hdr import encode

        return encode(self)

    @classmethod
    def from_hdr(cls, text: str) -> Histogram:
        """From that encoding, to the bucket; InvalidArgument for anything else."""
        from engine._hdr import decode

        return decode(text)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (self.count, self.sum, self.min, self.max) == (
            other.count,
            other.sum,
            other.min,
            other.max,
        ) and (self._buckets == other._buckets)

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        p50, p99 = self.percentiles((50, 99))
        return f"<Histogram count={self.count} mean={self.mean:.0f} p50={p50} p99={p99} max={self.max} ns>"
