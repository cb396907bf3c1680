"""Checks the options of a block node against the native driver table, before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping
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
    child = prefix + "file"
    below = driver.layer != "protocol"  # a format or filter stands on a `file`, described or named
    if below:
        known |= {"file", *(option.key for option in drivers["file"].options)}
    for key in options:
        own = key.removeprefix(prefix)
        if not key.startswith(prefix) or own in known or (below and key.startswith(child + ".")):
            continue
        return key, f"driver {name!r} has no option {own!r}; it has {', '.join(sorted(known))}"
    if below and any(key.startswith(child + ".") for key in options):
        return _check(options, child + ".", "file")
    return None
