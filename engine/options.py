"""Options of block nodes: nested Python values to dotted keys and texts, and the native driver table.

The table is the one source for what options there are; here nothing is known about any of them. No state.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine._bindings import NULL, check, encode, struct, text
from engine._native import ffi, lib
from engine.errors import invalid

MAX_OPTIONS = 4096
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option of a driver."""

    key: str
    type: str  # "string" "bool" "int" "size" "enum" "time" "node"
    default: str | None  # None: has none
    values: str | None  # enum: "a|b|c"; int, size, time: "min..max"
    text: str
    required: bool


@dataclass(frozen=True, slots=True)
class DriverInfo:
    """One driver of this build."""

    name: str
    layer: str  # "protocol" "format" "filter"
    text: str
    options: list[OptionInfo]
    children: list[str]  # their roles, under which the options of a child stand


def drivers() -> dict[str, DriverInfo]:
    """The drivers of this build with their options, by name, in order of name."""
    found = (_driver(index) for index in range(lib.engine_driver_count()))
    return {driver.name: driver for driver in found}


def _driver(index: int) -> DriverInfo:
    info = struct("engine_driver_info")
    check(lib.engine_driver_get(index, info), None, "get driver")
    options = [_option(index, number) for number in range(info.option_count)]
    roles: list[str] = []
    while (role := lib.engine_driver_get_role(index, len(roles))) != NULL:
        roles.append(text(role))
    return DriverInfo(text(info.name), text(info.layer), text(info.text), options, roles)


def _option(driver: int, index: int) -> OptionInfo:
    info = struct("engine_option_info")
    check(lib.engine_driver_get_option(driver, index, info), None, "get option")
    return OptionInfo(
        key=text(info.key),
        type=text(info.type),
        default=None if info.default_value == NULL else text(info.default_value),
        values=None if info.values == NULL else text(info.values),
        text=text(info.text),
        required=bool(info.required),
    )


def flatten(options: Mapping[str, Any]) -> dict[str, str | bytes]:
    """Dotted keys and their values as text: {"file": {"read_only": True}} gives {"file.read-only": "on"}.

    Underscores in keys become dashes; True and False become on and off; members of a list get their index as
    key; None means "not given" and is left out. InvalidArgument for a key given twice, or without a text.
    """
    flat: dict[str, str | bytes] = {}
    for key, value in _walk(options, "", 0):
        if key in flat:
            raise invalid(f"option {key!r} is given twice", key, operation="open")
        if len(flat) >= MAX_OPTIONS:
            raise invalid(f"more than {MAX_OPTIONS} options", key, operation="open")
        flat[key] = value
    return flat


def _walk(options: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, str | bytes]]:
    if depth > _MAX_DEPTH:
        raise invalid(
            f"option {prefix[:60]!r}: nested more than {_MAX_DEPTH} deep", prefix[:60], operation="open"
        )
    for name, value in options.items():
        if not isinstance(name, str) or not name:
            raise invalid(f"option {prefix}{name!r}: a key is a text that is not empty", "", operation="open")
        key = prefix + name.replace("_", "-")
        if isinstance(value, Mapping):
            yield from _walk(value, key + ".", depth + 1)
        elif isinstance(value, (list, tuple)):
            yield from _walk({str(i): member for i, member in enumerate(value)}, key + ".", depth + 1)
        elif value is not None:
            yield key, _text_of(key, value)


def _text_of(key: str, value: Any) -> str | bytes:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (str, bytes)):
        return value
    if isinstance(value, os.PathLike):
        name: str | bytes = os.fspath(value)
        return name
    if hasattr(type(value), "__index__"):
        return str(operator.index(value))
    raise invalid(
        f"option {key!r}: must be a text, a number, a truth value or a path, not {type(value).__name__}",
        key,
        operation="open",
    )


class NativeOptions:
    """An array of `engine_option`, with the texts that it points to."""

    def __init__(self, flat: Mapping[str, str | bytes]) -> None:
        self._texts = [
            (ffi.new("char[]", encode(key, key)), ffi.new("char[]", encode(value, key)))
            for key, value in flat.items()
        ]
        self.count = len(self._texts)
        self.array = ffi.new("engine_option[]", self._texts)
