"""The keys of an experiment file: what each may be. One table for each kind of TOML table.

Block nodes are not here: their options are the native driver table's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOCKINGS = ("per-node", "global")
BACKENDS = ("auto", "io_uring", "threads")
PATTERNS = ("read", "write", "rw", "randread", "randwrite", "randrw")


@dataclass(frozen=True)
class Key:
    """What a key's value may be; `parse` turns it into what the model holds or raises ValueError."""

    kind: str  # "int" "bool" "text" "size" "time" "choice" "cpus" "names" "speed"
    default: Any = None
    minimum: int = 0
    choices: tuple[str, ...] = ()
    required: bool = False

    def parse(self, value: Any) -> Any:
        return _PARSERS[self.kind](self, value)


def _int(key: Key, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, not {value!r}")
    if value < key.minimum:
        raise ValueError(f"must be at least {key.minimum}, not {value}")
    return value


def _bool(key: Key, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def _text(key: Key, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a text, not {value!r}")
    return value


def _choice(key: Key, value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = f"{value:g}"  # a percentile, say, needs no quotes
    if value not in key.choices:
        raise ValueError(f"must be {' or '.join(key.choices)}, not {value!r}")
    return str(value)


def _size(key: Key, value: Any) -> int:
    from engine.units import parse_size

    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f'must be a size such as "4k", not {value!r}')
    size = value if isinstance(value, int) else parse_size(value)
    if size < key.minimum:
        raise ValueError(f"must be at least {key.minimum} bytes, not {value!r}")
    return size


def _seconds(key: Key, value: Any) -> float:
    from engine.units import parse_time_ns

    if not isinstance(value, str):
        raise ValueError(f'must be a time with its unit such as "5s", not {value!r}')
    return parse_time_ns(value) / 1e9


def _cpus(key: Key, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of CPU numbers such as [0, 1], not {value!r}")
    for cpu in value:
        if isinstance(cpu, bool) or not isinstance(cpu, int) or cpu < 0:
            raise ValueError(f"{cpu!r} is not a CPU number")
    return tuple(value)


def _speed(key: Key, value: Any) -> float | str:
    if value == "max":
        return "max"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.000_001 <= value <= 1000:
        raise ValueError(f'must be "max" or a factor from 0.000001 to 1000, not {value!r}')
    return float(value)


def _names(key: Key, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise ValueError(f'must be a list of names such as ["io0", "io1"], not {value!r}')
    return tuple(value)


_PARSERS: Mapping[str, Any] = {
    "int": _int,
    "bool": _bool,
    "text": _text,
    "choice": _choice,
    "size": _size,
    "time": _seconds,
    "cpus": _cpus,
    "names": _names,
    "speed": _speed,
}

# Sections with one table: [run]. Keys are written with dashes in the file.
SINGLE: Mapping[str, Mapping[str, Key]] = {
    "run": {
        "title": Key("text"),
        "repeat": Key("int", 5, minimum=1),
        "processes": Key("int", 1, minimum=1),
        "warmup": Key("time", 0.0),
        "allow-holes": Key("bool", False),
        "sample": Key("time", 1.0),
        "trace": Key("int", 0),
    },
    "target": {
        "latency": Key("time", 0.0),
        "percentile": Key("choice", "99", choices=("50", "99", "99.9")),
        "search": Key("text"),
        "range": Key("text"),
        "points": Key("int", 12, minimum=3),
    },
    "engine": {
        "locking": Key("choice", "per-node", choices=LOCKINGS),
        "lock-profile": Key("bool", False),
    },
}

# Sections with named tables: [context.io0].
NAMED: Mapping[str, Mapping[str, Key]] = {
    "context": {
        "cpus": Key("cpus"),
        "poll-max-ns": Key("int"),
        "aio": Key("choice", "auto", choices=BACKENDS),
        "queue-depth": Key("int", 0),
    },
    "device": {
        "node": Key("text", required=True),
        "queues": Key("names", required=True),
        "queue-size": Key("int", 256, minimum=1),
        "write-cache": Key("bool", True),
        "read-only": Key("bool"),
        "event-index": Key("bool", True),
        "indirect": Key("bool", True),
        "polled": Key("bool", False),
        "serial": Key("text"),
    },
    "workload": {
        "device": Key("text"),
        "node": Key("text"),
        "contexts": Key("names", ()),
        "generators": Key("names", ()),
        "rw": Key("choice", "randread", choices=PATTERNS),
        "rwmixread": Key("int", 50),
        "bs": Key("size", 4096, minimum=512),
        "iodepth": Key("int", 64, minimum=1),
        "runtime": Key("time", 0.0),
        "count": Key("int", 0),
        "rate-iops": Key("int", 0),
        "seed": Key("int", 1),
        "offset": Key("size", 0),
        "length": Key("size", 0),
        "flush-every": Key("int", 0),
        "latency": Key("bool", True),
        "verify": Key("bool", False),
        "replay": Key("text"),
        "replay-speed": Key("speed"),
        "replay-file": Key("text"),
        "replay-event": Key("choice", choices=("Q", "D")),
        "replay-beyond": Key("choice", "refuse", choices=("refuse", "wrap")),
    },
    "image": {
        "path": Key("text", required=True),
        "size": Key("size", required=True, minimum=4096),
        "seed": Key("int", 1),
        "preload": Key("bool", False),
    },
}

# Read by their own code: option tables of nodes, the sweep and its marks, and texts for the report.
FREE = ("blockdev", "sweep", "zip", "mark", "labels")
SECTIONS = (*SINGLE, *NAMED, *FREE)
