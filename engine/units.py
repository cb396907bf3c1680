"""Sizes and times as text: "4k", "1G", "64KiB"; "20us", "5s". No state, no native code."""

from __future__ import annotations

import re

from engine.errors import InvalidArgument, invalid

_NUMBER = re.compile(r"([0-9]+)(?:\.([0-9]+))? ?([A-Za-z]*)")
_SIZE_LETTERS = "kmgtpe"  # powers of 1024, as qemu-img and fio read them
_TIME_UNITS = {
    "ns": 1,
    "us": 1000,
    "ms": 1000_000,
    "s": 1000_000_000,
    "min": 60 * 1000_000_000,
    "h": 3600 * 1000_000_000,
}
_MOST = 2**63 - 1
_A_SIZE = "a size such as 4k or 1G"
_A_TIME = "a time with its unit, such as 20us or 5s"


def parse_size(text: str | int) -> int:
    """Bytes from "512", "4k", "1.5G", "64KiB", "1 MiB": powers of 1024 in either case, at most 2^63 - 1.

    A fraction of a byte is cut off. A number is taken as it is. InvalidArgument, which is a ValueError, for
    everything else.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return _bounded(text, text, "size", _A_SIZE)
    whole, fraction, suffix = _split(text, "size", _A_SIZE)
    unit = _size_unit(suffix)
    if unit is None:
        raise _wrong(text, "size", _A_SIZE)
    return _bounded(_scale(whole, fraction, unit), text, "size", _A_SIZE)


def parse_time_ns(text: str) -> int:
    """Nanoseconds from "100ns", "20us", "1.5ms", "5s", "2min", "1h" or "0": what is not zero needs its unit.

    A fraction of a nanosecond is cut off. InvalidArgument, which is a ValueError, for everything else.
    """
    whole, fraction, suffix = _split(text, "time", _A_TIME)
    unit = _TIME_UNITS.get(suffix)
    if unit is None:
        if suffix or int(whole + fraction):
            raise _wrong(text, "time", _A_TIME)
        unit = 1
    return _bounded(_scale(whole, fraction, unit), text, "time", _A_TIME)


def _split(text: object, field: str, wanted: str) -> tuple[str, str, str]:
    """Digits before and after the point, and the unit."""
    match = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise _wrong(text, field, wanted)
    return match[1], match[2] or "", match[3]


def _scale(whole: str, fraction: str, unit: int) -> int:
    divisor = int("1" + "0" * len(fraction))  # exact: no floating point
    return int(whole + fraction) * unit // divisor


def _size_unit(suffix: str) -> int | None:
    if suffix in ("", "b", "B"):
        return 1
    power = _SIZE_LETTERS.find(suffix[0].lower()) + 1
    if power == 0 or suffix[1:] not in ("", "i", "B", "iB"):
        return None
    return 1 << (10 * power)


def _bounded(value: int, text: object, field: str, wanted: str) -> int:
    if not 0 <= value <= _MOST:
        raise _wrong(text, field, f"{wanted}, at most 2^63 - 1")
    return value


def _wrong(text: object, field: str, wanted: str) -> InvalidArgument:
    return invalid(f"{text!r} is not {wanted}", field)
