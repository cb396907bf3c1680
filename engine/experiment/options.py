"""Checks the options of a block node against the native driver table, before anything is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ALIASES = {"null-co": "null", "null-aio": "null"}  # as QEMU names it


def check_options(options: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first wrong option, as its dotted key ("" for the node itself) and what is wrong; None: all well.

    Values are left to the drivers, which know their ranges; but a driver or a key that does not exist is
    found here, where the line of the file is known.
    """
    for key, value in options.items():
        if not isinstance(value, (str, int, bool)):
            return key, f"must be a text, a number, true or false, not {value!r}"
    return _check(options, "")


def references(options: Mapping[str, Any], prefix: str = "", default: str = "") -> Iterator[tuple[str, str]]:
    """Of options that are well: the keys of children that are given as the name of a node, and the names."""
    import engine

    name = str(options.get(prefix + "driver", default))
    for role in engine.drivers()[_ALIASES.get(name, name)].children:
        key = prefix + role
        if isinstance(options.get(key), str):
            yield key, str(options[key])
        elif any(other.startswith(key + ".") for other in options):
            yield from references(options, key + ".", "file")


def _check(options: Mapping[str, Any], prefix: str, default: str | None = None) -> tuple[str, str] | None:
    import engine

    drivers = engine.drivers()
    name = str(options.get(prefix + "driver", default or ""))
    if not name:
        return "", f"driver is missing: one of {', '.join(drivers)}"
    driver = drivers.get(_ALIASES.get(name, name))
    if driver is None:
        return prefix + "driver", f"this build has no driver {name!r}; it has {', '.join(drivers)}"
    known = {"driver", "node-name", *(option.key for option in driver.options)}
    known |= set(driver.children)  # a node by its name, or its options below that
    if driver.children:  # what is not its own is its file's
        known |= {option.key for option in drivers["file"].options}
    for key in options:
        own = key.removeprefix(prefix)
        if not key.startswith(prefix) or own in known or own.partition(".")[0] in driver.children:
            continue
        return key, f"driver {name!r} has no option {own!r}; it has {', '.join(sorted(known))}"
    for role in driver.children:
        child = f"{prefix}{role}."
        if any(key.startswith(child) for key in options) and (wrong := _check(options, child, "file")):
            return wrong
    return None
