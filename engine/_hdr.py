"""Histograms in the encoding of HdrHistogram (version 2, compressed, base64), which its tools read and merge.

Two significant digits have 128 buckets for each power of two, four for each of ours: a count goes where the
largest value of its bucket lies, so percentiles are the same on both sides. Sums and extremes are known to
the bucket afterwards. Source: the format's description in the HdrHistogram project.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Iterator

from engine.errors import invalid
from engine.histogram import Histogram

_COOKIE, _COMPRESSED = 0x1C849313, 0x1C849314
_HEAD = struct.Struct(">iiiiqqd")
_DIGITS = 2
_HOUR_NS = 3_600_000_000_000


def encode(histogram: Histogram) -> str:
    counts: dict[int, int] = {}
    for _, high, count in histogram.buckets():
        counts[_index(high - 1, _DIGITS)] = count
    payload = bytearray()
    at = 0
    for index, count in counts.items():
        if index > at:
            payload += _leb128(at - index)  # so many zeroes
        payload += _leb128(count)
        at = index + 1
    highest = max(_HOUR_NS, min(2 * histogram.max, 2**63 - 1))
    head = _HEAD.pack(_COOKIE, len(payload), 0, _DIGITS, 1, highest, 1.0)
    body = zlib.compress(head + bytes(payload), 9)
    return base64.b64encode(struct.pack(">ii", _COMPRESSED, len(body)) + body).decode()


def decode(text: str) -> Histogram:
    """Of any number of significant digits, with a unit of one; InvalidArgument for anything else."""
    try:
        outer = base64.b64decode(text, validate=True)
        cookie, length = struct.unpack_from(">ii", outer)
        if cookie != _COMPRESSED:
            raise ValueError("is not version 2, compressed")
        body = zlib.decompress(outer[8 : 8 + length])
        cookie, length, offset, digits, lowest, _, ratio = _HEAD.unpack_from(body)
        if cookie != _COOKIE or offset != 0 or lowest != 1 or ratio != 1.0 or not 0 <= digits <= 5:
            raise ValueError("is of a kind that is not read here")
        payload = body[_HEAD.size : _HEAD.size + length]
        if len(payload) != length:
            raise ValueError("is cut short")
        histogram = Histogram()
        at = 0
        for number in _numbers(payload):
            if number < 0:
                at -= number
                continue
            histogram.record(_low(at, digits), number)
            at += 1
    except (ValueError, struct.error, zlib.error, binascii.Error, OverflowError) as error:
        raise invalid(f"not an encoded HdrHistogram: {error}", "text") from None
    return histogram


def _half_bits(digits: int) -> int:
    most: int = 2 * 10**digits - 1
    return most.bit_length() - 1


def _index(value: int, digits: int) -> int:
    """Of the count of a value."""
    half = _half_bits(digits)
    bucket = max(value.bit_length() - (half + 1), 0)
    return ((bucket + 1) << half) + (value >> bucket) - (1 << half)


def _low(index: int, digits: int) -> int:
    """The lowest value that is counted there."""
    half = _half_bits(digits)
    bucket = (index >> half) - 1
    if bucket < 0:
        return index
    value = ((index & ((1 << half) - 1)) + (1 << half)) << bucket
    if value >= 2**64:
        raise ValueError("has a value of more than 64 bits")
    return value


def _leb128(number: int) -> bytes:
    """ZigZag, seven bits a byte; a ninth byte has eight."""
    value = (number << 1) ^ (number >> 63)
    out = bytearray()
    for _ in range(8):
        if value < 0x80:
            out.append(value)
            return bytes(out)
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0xFF)
    return bytes(out)


def _numbers(payload: bytes) -> Iterator[int]:
    at = 0
    while at < len(payload):
        value = shift = 0
        for position in range(9):
            if at >= len(payload):
                raise ValueError("ends within a number")
            byte = payload[at]
            at += 1
            if position == 8:
                value |= byte << shift
                break
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield (value >> 1) ^ -(value & 1)
