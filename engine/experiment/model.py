"""What one measured point is made of: contexts, nodes, devices and workloads, checked and complete.

Everything here is immutable and turns into JSON and back, so that a worker process gets exactly what the
result file states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

READ_PERCENT = {"read": 100, "randread": 100, "write": 0, "randwrite": 0, "rw": None, "randrw": None}


@dataclass(frozen=True)
class EngineSpec:
    locking: str = "per-node"
    lock_profile: bool = False


@dataclass(frozen=True)
class ContextSpec:
    name: str
    cpus: tuple[int, ...] | None = None  # None: not pinned
    poll_max_ns: int | None = None  # None: the engine's default
    aio: str = "auto"
    queue_depth: int = 0


@dataclass(frozen=True)
class NodeSpec:
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)  # dotted keys of the block layer
    below: tuple[str, ...] = ()  # the nodes that it stands on by their names

    @property
    def filename(self) -> str | None:
        """The file that it stands on; None for a node without one."""
        filename = self.options.get("file.filename", self.options.get("filename"))
        return None if filename is None else str(filename)

    @property
    def buffered_file(self) -> str | None:
        """The file that this node reads through the page cache, if it does."""
        options = self.options
        direct = options.get("cache.direct", options.get("file.cache.direct", False))
        return None if direct in (True, "on") else self.filename


@dataclass(frozen=True)
class DeviceSpec:
    name: str
    node: str
    queues: tuple[str, ...]  # queue i is served by this context
    queue_size: int = 256
    write_cache: bool = True
    read_only: bool | None = None  # None: read-only where its workloads only read
    event_index: bool = True
    indirect: bool = True
    polled: bool = False
    serial: str | None = None


@dataclass(frozen=True)
class ReplaySpec:
    """A recording that is replayed: `engine.Recording`."""

    path: str
    sha256: str  # of the file: runs of one result replay the same
    file: str | None = None  # of a recording of several
    event: str | None = None  # of blkparse's
    speed: float | str | None = None  # a factor, or "max"; None: as recorded, where times were recorded
    wrap: bool = False
    operations: Mapping[str, int] = field(default_factory=dict)  # of each kind
    seconds: float = 0.0  # as recorded
    timed: bool = True

    @property
    def writes(self) -> bool:
        return bool(self.operations.get("write") or self.operations.get("discard"))

    @property
    def open_loop(self) -> bool:
        return self.timed and self.speed != "max"

    @property
    def seconds_at_speed(self) -> float:
        """0 where that depends on the disk."""
        return self.seconds / float(self.speed or 1.0) if self.open_loop else 0.0


@dataclass(frozen=True)
class WorkloadSpec:
    name: str
    device: str | None = None  # a device, one generator for each of its queues …
    node: str | None = None  # … or a node, one generator for each of `contexts`
    contexts: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()  # contexts that generate, dealt in order; none: the queue's own
    rw: str = "randread"
    rwmixread: int = 50
    bs: int = 4096
    iodepth: int = 64  # of each generator
    runtime: float = 0.0  # seconds; 0: until count
    count: int = 0  # requests of all generators together; 0: until runtime
    rate_iops: int = 0  # of all generators together; 0: closed loop
    seed: int = 1
    offset: int = 0
    length: int = 0
    flush_every: int = 0
    latency: bool = True
    verify: bool = False
    replay: ReplaySpec | None = None  # in place of rw, bs and what goes with them

    @property
    def writes(self) -> bool:
        if self.replay is not None:
            return self.replay.writes
        return self.rw not in ("read", "randread")

    @property
    def open_loop(self) -> bool:
        return self.rate_iops > 0 if self.replay is None else self.replay.open_loop

    @property
    def seconds(self) -> float:
        """How long it runs, where that is known; else 0."""
        recorded = 0.0 if self.replay is None else self.replay.seconds_at_speed
        return min(self.runtime, recorded) if self.runtime and recorded else self.runtime or recorded


@dataclass(frozen=True)
class Generator:
    """One load generator: its share of a workload, on one queue or one context."""

    workload: WorkloadSpec
    index: int  # among the generators of its workload
    target: int  # the queue of the device, or -1: the node
    context: str  # that serves the requests
    home: str | None  # where the generator runs; None: with its queue
    count: int
    rate_iops: int
    seed: int
    of: int = 1  # generators of its workload


@dataclass(frozen=True)
class Setup:
    """One point of a plan: everything that a process needs to run it."""

    engine: EngineSpec
    contexts: tuple[ContextSpec, ...]
    nodes: tuple[NodeSpec, ...]
    devices: tuple[DeviceSpec, ...]
    workloads: tuple[WorkloadSpec, ...]
    processes: int = 1  # generators are dealt round robin over them, each with an engine of its own
    warmup: float = 0.0  # seconds, not measured
    allow_holes: bool = False
    sample: float = 1.0  # seconds of a slice of the series; 0: none is kept
    trace: int = 0  # one request in so many; 0: none

    def device(self, name: str) -> DeviceSpec:
        return next(device for device in self.devices if device.name == name)

    def nodes_for(self, names: Iterable[str]) -> list[NodeSpec]:
        """These and what they stand on, in the order of opening."""
        wanted = set(names)
        for node in reversed(self.nodes):  # what is below comes before
            if node.name in wanted:
                wanted.update(node.below)
        return [node for node in self.nodes if node.name in wanted]

    def node_of(self, workload: WorkloadSpec) -> str:
        return self.device(workload.device).node if workload.device else str(workload.node)

    def serving_contexts(self, workload: WorkloadSpec) -> tuple[str, ...]:
        return self.device(workload.device).queues if workload.device else workload.contexts

    def generators(self, process: int = 0) -> Iterator[Generator]:
        """Those of one process: `process` of `self.processes`."""
        for workload in self.workloads:
            contexts = self.serving_contexts(workload)
            for index, context in enumerate(contexts):
                if index % self.processes != process:
                    continue
                count = _share(workload.count, index, len(contexts))
                rate = _share(workload.rate_iops, index, len(contexts))
                if (workload.count and not count) or (workload.rate_iops and not rate):
                    continue  # fewer requests than generators; 0 would mean no limit
                if workload.replay and index >= sum(workload.replay.operations.values()):
                    continue
                target = index // self.processes if workload.device else -1
                homes = workload.generators
                home = homes[index % len(homes)] if homes else None
                seed = workload.seed + index
                yield Generator(workload, index, target, context, home, count, rate, seed, len(contexts))

    @property
    def seconds(self) -> float:
        """How long a run takes at least; workloads of one point run at the same time."""
        return self.warmup + max((w.seconds for w in self.workloads), default=0.0)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Setup:
        return cls(
            EngineSpec(**data["engine"]),
            tuple(ContextSpec(**_tuples(item, "cpus")) for item in data["contexts"]),
            tuple(NodeSpec(**_tuples(item, "below")) for item in data["nodes"]),
            tuple(DeviceSpec(**_tuples(item, "queues")) for item in data["devices"]),
            tuple(_workload(item) for item in data["workloads"]),
            data["processes"],
            data["warmup"],
            data["allow_holes"],
            data["sample"],
            data.get("trace", 0),
        )


def _share(total: int, index: int, parts: int) -> int:
    """The part of `total` that number `index` gets: the first ones get one more where it does not divide."""
    return total // parts + (1 if index < total % parts else 0)


def _workload(item: Mapping[str, Any]) -> WorkloadSpec:
    values = _tuples(item, "contexts", "generators")
    if values["replay"] is not None:
        values["replay"] = ReplaySpec(**values["replay"])
    return WorkloadSpec(**values)


def _tuples(item: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {k: tuple(v) if k in names and v is not None else v for k, v in item.items()}
