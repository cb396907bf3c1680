"""Where the time of sampled requests went: what a workload with `trace` leaves behind, in stages.

Snapshots: nothing to guard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Any

from engine._bindings import check
from engine._native import ffi, lib
from engine.stats import OPERATIONS

KINDS = ("popped", "entered", "left", "wait", "waited", "queued", "submitted", "reaped", "completed")
WAITS = ("lock wait", "overlap wait", "held back", "graph change", "memory wait", "device")
# As a request meets them; what another layer may add stands between.
STAGES = (
    "queue",  # from the (intended) start until the device has taken it, or the graph has it
    "graph change",  # held at its entry while the graph changes
    "mapping",  # in the code of nodes, on its way down
    "lock wait",  # for a node's `meta`
    "overlap wait",  # for requests to the same place
    "memory wait",  # for a bounce buffer
    "held back",  # throttle, delay, fault
    "submit",  # with the backend, until the system call
    "device",  # with the kernel, until the context has seen that it is done; or a driver's own latency
    "completion",  # in the code of nodes, on its way up
    "callback",  # until its front end has noticed
)
_OPS = {number: name for name, number in OPERATIONS.items()}
_MARK = Struct("<QIHBB")
_DOWN = ("entered", "queued", "wait")


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing that happened to a request. at_ns: engine clock."""

    at_ns: int
    node: int  # NodeInfo.id; 0: none
    context: int  # ContextInfo.id
    kind: str  # one of KINDS
    detail: str  # of "wait" and "waited": one of WAITS; else ""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a request's time; those of one request follow each other without a gap."""

    begin_ns: int
    end_ns: int
    name: str  # one of STAGES
    node: int  # where it waited or was worked on: NodeInfo.id; 0: none in particular
    context: int


@dataclass(frozen=True, slots=True)
class Trace:
    """One request. Its marks are in order of time."""

    request_id: int
    op: str
    offset: int
    length: int
    result: int  # 0 or -errno
    start_ns: int  # open loop: the intended start
    end_ns: int
    front_context: int  # where it was made and noticed
    marks: tuple[Mark, ...]
    marks_lost: int  # it had more than there is room for: the rest of its time is said to be completion

    @property
    def latency_ns(self) -> int:
        return self.end_ns - self.start_ns

    def stages(self) -> list[Stage]:
        """Each nanosecond from start to end, once. Of a request that is served in parts, the part that is
        furthest counts: the device before what waits, and that before the code of nodes."""
        return list(_stages(self))


@dataclass(frozen=True, slots=True)
class Traces:
    """Those of one workload, in order of their end. They are drawn evenly over all of its time."""

    every: int  # one request in so many; more than was asked for where too many were drawn
    requests: list[Trace]


class _State:
    """Where a request is, between two marks."""

    def __init__(self, front: int) -> None:
        self.popped = self.completed = False
        self.queued = self.with_kernel = 0
        self.waits: list[tuple[str, int, int]] = []
        self.inside: list[tuple[int, int]] = []
        self.context = front
        self.front = front

    def apply(self, mark: Mark) -> None:
        self.context = mark.context
        match mark.kind:
            case "popped":
                self.popped = True
            case "entered":
                self.inside.append((mark.node, mark.context))
            case "left":
                self._forget(self.inside, (mark.node, mark.context))
                self._forget(self.waits, ("device", mark.node, mark.context))
            case "wait":
                self.waits.append((mark.detail, mark.node, mark.context))
            case "waited":
                self._forget(self.waits, (mark.detail, mark.node, mark.context))
            case "queued":
                self.queued += 1
            case "submitted":
                self.queued -= 1
                self.with_kernel += 1
            case "reaped":
                self.with_kernel -= 1
            case "completed":
                self.completed = True

    def stage(self, down: bool) -> tuple[str, int, int]:
        """Name, node, context. `down`: it has not been everywhere yet."""
        node, context = self.inside[-1] if self.inside else (0, self.context)
        if self.completed:
            return "callback", 0, self.front
        if not self.popped:
            return "queue", 0, self.front
        if self.with_kernel > 0:
            return "device", node, context
        held = next((wait for wait in self.waits if wait[0] == "device"), None)
        if held is not None:
            return held
        if self.queued > 0:
            return "submit", node, context
        if self.waits:
            return self.waits[-1]
        return "mapping" if down else "completion", node, context

    @staticmethod
    def _forget(items: list[Any], item: Any) -> None:
        if item in items:
            items.reverse()
            items.remove(item)  # the latest
            items.reverse()


def _stages(trace: Trace) -> Iterator[Stage]:
    state = _State(trace.front_context)
    deepest = max((i for i, mark in enumerate(trace.marks) if mark.kind in _DOWN), default=-1)
    begin = trace.start_ns
    for number, mark in enumerate(trace.marks):
        at = min(max(mark.at_ns, begin), trace.end_ns)
        if at > begin:
            yield Stage(begin, at, *state.stage(number <= deepest))
        begin = at
        state.apply(mark)
    if trace.end_ns > begin:
        if not trace.marks_lost and not state.waits and not state.with_kernel:
            state.completed = True  # a front end that is called back knows at once
        yield Stage(begin, trace.end_ns, *state.stage(down=False))


def read_traces(workload: Any, label: str) -> Traces:
    """Of an `engine_workload_t` that is not running."""
    count, every = ffi.new("uint64_t *"), ffi.new("uint32_t *")
    check(lib.engine_workload_get_traces(workload, ffi.NULL, 0, count, every), None, "get traces", label)
    native = ffi.new("engine_trace[]", max(1, count[0]))
    check(lib.engine_workload_get_traces(workload, native, count[0], count, every), None, "get traces", label)
    return Traces(int(every[0]), [_trace(native[index]) for index in reversed(range(count[0]))])


def _trace(native: Any) -> Trace:
    raw = ffi.buffer(native.marks)[: native.mark_count * _MARK.size]
    marks = [
        Mark(at, node, context, KINDS[kind], WAITS[detail] if kind in (3, 4) else "")
        for at, node, context, kind, detail in _MARK.iter_unpack(raw)
    ]
    return Trace(
        int(native.request_id),
        _OPS.get(int(native.op), "?"),
        int(native.offset),
        int(native.length),
        int(native.result),
        int(native.start_ns),
        int(native.end_ns),
        int(native.front_context),
        tuple(sorted(marks, key=lambda mark: mark.at_ns)),
        int(native.marks_lost),
    )
