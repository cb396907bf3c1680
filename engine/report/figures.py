"""Numbers for people: three significant digits and a unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DECIMAL = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_TIMES = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"))
NONE = "\u2013"  # a dash: nothing to say
TIMES = "\u00d7"


def three_digits(value: float) -> str:
    """9.07, 34.8, 512: as many decimals as three digits leave."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    for limit, decimals in ((9.995, 2), (99.95, 1)):
        if magnitude < limit:
            return f"{value:.{decimals}f}"
    return f"{value:.0f}"


def count(value: float | None) -> str:
    """9.07 M; whole numbers below a thousand as they are."""
    if value is None:
        return NONE
    for scale, unit in _DECIMAL:
        if abs(value) >= scale * 0.9995:
            return f"{three_digits(value / scale)} {unit}"
    return str(round(value)) if abs(value - round(value)) < 0.005 else three_digits(value)


def round_count(value: float) -> str:
    """For the ticks of an axis: 5 M, 1.5 M."""
    number, space, unit = count(value).partition(" ")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + unit


def size(value: float) -> str:
    """34.8 GiB; exact multiples without decimals."""
    for scale, unit in _BINARY:
        if value >= scale:
            number = value / scale
            return f"{number:.0f} {unit}" if number == int(number) else f"{three_digits(number)} {unit}"
    return f"{value:.0f} B"


def bandwidth(value: float) -> str:
    return f"{size(value)}/s"


def duration_ns(value: float | None) -> str:
    """6.98 µs."""
    if value is None:
        return NONE
    for scale, unit in _TIMES:
        if value >= scale * 0.9995:
            return f"{three_digits(value / scale)} {unit}"
    return f"{value:.0f} ns"


def round_duration(ns: float) -> str:
    """For the ticks of an axis: 10 µs, 1.5 ms."""
    number, _, unit = duration_ns(ns).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def microseconds(value: float | None) -> str:
    """CPU time per request: always µs, so that figures can be compared at a glance."""
    if value is None:
        return NONE
    return f"{value:.3f} µs" if value < 9.9995 else f"{three_digits(value)} µs"


def percent(share: float | None) -> str:
    """52 %; one decimal below ten."""
    if share is None:
        return NONE
    value = 100.0 * share
    if value == 0:
        return "0 %"
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %"


def ratio(value: float | None) -> str:
    """0.54, 1.97; empty of nothing."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 99.995 else count(value)


def seconds(value: float) -> str:
    """An interval to wait: 48 s, 3 min 20 s, 2 h 05 min."""
    whole = round(value)
    if whole < 60:
        return f"{value:.2g} s" if value < 9.5 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def backend(context: Mapping[str, Any]) -> str:
    """The backend of a context and why it is this one; most reasons begin with its name."""
    name, reason = str(context["backend"]), str(context["backend_reason"])
    if not reason:
        return name
    return reason if reason.startswith(name) else f"{name}: {reason}"


def plural(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
