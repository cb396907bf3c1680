"""Counters as plain, frozen data: what nodes, queues and locks have in common.

Snapshots: nothing to guard.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

from engine._bindings import text
from engine._native import lib
from engine.histogram import Histogram

Record = TypeVar("Record")

OPERATIONS = {
    "read": lib.ENGINE_OP_READ,
    "write": lib.ENGINE_OP_WRITE,
    "flush": lib.ENGINE_OP_FLUSH,
    "discard": lib.ENGINE_OP_DISCARD,
    "write_zeroes": lib.ENGINE_OP_WRITE_ZEROES,
    "resize": lib.ENGINE_OP_RESIZE,
    "block_status": lib.ENGINE_OP_BLOCK_STATUS,
    "copy_range": lib.ENGINE_OP_COPY_RANGE,
}


@dataclass(frozen=True, slots=True)
class OpStats:
    """Of one kind of operation. errors are among the requests; bytes are those of the others."""

    requests: int
    bytes: int
    errors: int


@dataclass(frozen=True, slots=True)
class LockInfo:
    """One lock of the engine. The histograms, in nanoseconds, are empty without `lock_profile`."""

    owner: str  # node name; "engine" for the global mutex
    lock: str  # "global", "edges", "meta", "reqs"
    rank: int
    acquisitions: int
    contended: int
    wait_ns: Histogram
    hold_ns: Histogram


@dataclass(frozen=True, slots=True)
class NodeLocks:
    """The locks of one node, by rank."""

    edges: LockInfo  # children, parents, permissions
    meta: LockInfo  # a format's tables
    reqs: LockInfo  # requests that must not overlap

    @classmethod
    def among(cls, locks: list[LockInfo], owner: str) -> NodeLocks:
        """Those of one owner, out of all of an engine's."""
        own = {info.lock: info for info in locks if info.owner == owner}
        names = [field.name for field in fields(cls)]
        for rank, name in enumerate(names, start=1):
            own.setdefault(name, LockInfo(owner, name, rank, 0, 0, Histogram(), Histogram()))
        return cls(**{name: own[name] for name in names})


def record_of(cls: type[Record], native: Any, **given: Any) -> Record:
    """A dataclass whose fields are named as those of a native struct; `given` are those that differ."""
    names = (field.name for field in fields(cls))  # type: ignore[arg-type]
    return cls(**{name: getattr(native, name) for name in names if name not in given}, **given)


def op_stats(native: Any) -> dict[str, OpStats]:
    """From an array of `engine_op_stats`, by name of the operation."""
    return {name: record_of(OpStats, native[index]) for name, index in OPERATIONS.items()}


def lock_info(native: Any) -> LockInfo:
    return record_of(
        LockInfo,
        native,
        owner=text(native.owner),
        lock=text(native.lock),
        wait_ns=Histogram.from_native(native.wait_ns),
        hold_ns=Histogram.from_native(native.hold_ns),
    )
