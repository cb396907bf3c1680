"""Runs one point in this process: opens its engine, runs its generators, and gathers what they did.

The result of `Rig.run` is plain data, so that a worker process can hand it over as JSON; `record` puts the
parts of all processes together.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

from engine.experiment import fio
from engine.experiment.errors import UserError
from engine.experiment.host import ProcessUsage, check_cpus
from engine.experiment.model import ContextSpec, Generator, Setup, WorkloadSpec
from engine.experiment.places import place
from engine.experiment.schema import NAMED
from engine.experiment.series import Sampler
from engine.experiment.stages import of_process

if TYPE_CHECKING:
    from engine import AioContext, BlockNode, Engine, Recording, VirtioBlk, Workload
    from engine.trace import Traces

# Statistics that are a state, not a count: reported as they are at the end.
_LEVELS = {"poll_current_ns", "in_flight", "broken", "channels"}


class Rig:
    """The engine of one process of a point, with everything open and the generators ready to start."""

    def __init__(
        self, setup: Setup, process: int = 0, recordings: Mapping[str, Recording] | None = None
    ) -> None:
        self.setup = setup
        self._recordings = recordings or {}
        self.generators = list(setup.generators(process))
        self.process = process
        self.interrupted = False
        self._slices: list[dict[str, Any]] = []
        self._traces: dict[str, list[Traces]] = {}  # by workload
        self.contexts: dict[str, AioContext] = {}
        self.nodes: dict[str, BlockNode] = {}
        self.devices: dict[str, VirtioBlk] = {}
        self._stack = ExitStack()
        try:
            self.engine = self._open()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes everything; idempotent."""
        self._stack.close()

    # ---- opening ----

    def _open(self) -> Engine:
        import engine

        setup = self.setup
        if not self.generators:
            raise UserError("there is nothing to run: fewer requests than processes")
        settings = setup.engine
        backends = {spec.aio for spec in setup.contexts}
        opened = self._stack.enter_context(
            engine.Engine(
                locking=settings.locking,
                lock_profile=settings.lock_profile,
                backend=backends.pop() if len(backends) == 1 else "auto",  # of the context main
            )
        )
        used = {g.context for g in self.generators} | {g.home for g in self.generators if g.home}
        for spec in setup.contexts:
            if spec.name in used:
                self.contexts[spec.name] = self._add_context(opened, spec)
        worked_on = {setup.node_of(g.workload) for g in self.generators}
        for node in setup.nodes_for(worked_on):
            with place("blockdev", node.name, node.options):
                self.nodes[node.name] = opened.open(**node.options)
                self._stack.callback(self.nodes[node.name].close)
                if node.name in worked_on and not setup.allow_holes:
                    refuse_holes(self.nodes[node.name], node.filename or node.name)
        for device in setup.devices:
            queues = device.queues[self.process :: setup.processes]
            writes = any(w.writes for w in setup.workloads if w.device == device.name)
            with place("device", device.name, NAMED["device"]):
                self.devices[device.name] = opened.virtio_blk(
                    self.nodes[device.node],
                    queues=list(queues),
                    queue_size=device.queue_size,
                    write_cache=device.write_cache,
                    read_only=not writes if device.read_only is None else device.read_only,
                    event_index=device.event_index,
                    indirect=device.indirect,
                    polled=device.polled,
                    serial=device.serial or device.name[:20],
                )
            self._stack.callback(self.devices[device.name].close)
        return opened

    @staticmethod
    def _add_context(opened: Engine, spec: ContextSpec) -> AioContext:
        if spec.cpus and (wrong := check_cpus(spec.cpus)):
            raise UserError(f"context {spec.name}: {wrong}")
        return opened.add_context(
            spec.name,
            cpus=list(spec.cpus) if spec.cpus else None,
            poll_max_ns=spec.poll_max_ns,
            backend=spec.aio,
            queue_depth=spec.queue_depth,
        )

    def _workload(self, generator: Generator, warmup: bool = False) -> Workload:
        with place("workload", generator.workload.name, NAMED["workload"]):
            return self._make_workload(generator, warmup)

    def _make_workload(self, generator: Generator, warmup: bool) -> Workload:
        spec = generator.workload
        target: Any = (
            self.devices[spec.device].queues[generator.target] if spec.device else self.nodes[str(spec.node)]
        )
        home = generator.home or (None if spec.device else generator.context)
        if spec.replay is not None:
            return self.engine.workload(
                target,
                iodepth=spec.iodepth,
                count=0 if warmup else generator.count,
                runtime=self.setup.warmup if warmup else spec.runtime,
                offset=spec.offset,
                length=spec.length,
                latency=spec.latency,
                trace=0 if warmup else self.setup.trace,
                context=self.contexts[home] if home else None,
                replay=self._recordings[spec.name],
                replay_speed=spec.replay.speed,
                replay_wrap=spec.replay.wrap,
                replay_share=(generator.index, generator.of),
            )
        return self.engine.workload(
            target,
            rw=spec.rw,
            bs=spec.bs,
            iodepth=spec.iodepth,
            count=0 if warmup else generator.count,
            runtime=self.setup.warmup if warmup else spec.runtime,
            rate_iops=0 if warmup else generator.rate_iops,
            seed=generator.seed,
            rwmixread=spec.rwmixread,
            offset=spec.offset,
            length=spec.length,
            flush_every=spec.flush_every,
            latency=spec.latency,
            verify=spec.verify,
            trace=0 if warmup else self.setup.trace,
            context=self.contexts[home] if home else None,
        )

    # ---- running ----

    def placement(self) -> list[dict[str, Any]]:
        """Where each context really runs, read back from the kernel."""
        asked = {spec.name: spec.cpus for spec in self.setup.contexts}
        return [
            describe_context(context, asked[name], self.process) for name, context in self.contexts.items()
        ]

    def run(self, gate: Callable[[], None] | None = None) -> dict[str, Any]:
        """Warms up, waits for `gate`, then runs all generators until they end or Ctrl-C stops them."""
        import engine

        if self.setup.warmup:
            self._drive([self._workload(generator, warmup=True) for generator in self.generators])
            if self.interrupted:
                raise KeyboardInterrupt
        workloads = [self._workload(generator) for generator in self.generators]
        if gate is not None:
            gate()
        before, usage, started = self._counters(), ProcessUsage.now(), engine.now_ns()
        results = self._drive(workloads, measured=True)
        used, ended = ProcessUsage.now().since(usage), engine.now_ns()
        after = self._counters()
        return {
            "pid": os.getpid(),
            "process": self.process,
            "partial": self.interrupted,
            "seconds": (ended - started) / 1e9,
            "cpu": dataclasses.asdict(used),
            "generators": results,
            "slices": self._slices,
            "traces": of_process(self.engine, self.nodes.values(), self._traces),
            "contexts": [
                {**place, "stats": _difference(before[place["name"]], after[place["name"]])}
                for place in self.placement()
            ],
            "queues": self._queues(),
            "nodes": self._nodes(),
            "locks": self._locks(before),
        }

    def _drive(self, workloads: list[Workload], measured: bool = False) -> list[dict[str, Any]]:
        """Starts all, waits for all; returns the results. Ctrl-C stops them and keeps what they have done."""
        try:
            try:
                for workload in workloads:
                    workload.start()
                if measured and self.setup.sample:
                    self._watch(workloads, self.setup.sample)
                for workload in workloads:
                    workload.wait()
            except KeyboardInterrupt:
                self.interrupted = True
                for workload in workloads:
                    workload.stop()
                for workload in workloads:
                    workload.wait()
            if measured and self.setup.trace:
                self._keep_traces(workloads)
            return [_result(g, w) for g, w in zip(self.generators, workloads, strict=True)]
        finally:
            for workload in workloads:
                workload.close()

    def _keep_traces(self, workloads: list[Workload]) -> None:
        for generator, workload in zip(self.generators, workloads, strict=True):
            self._traces.setdefault(generator.workload.name, []).append(workload.traces())

    def _watch(self, workloads: list[Workload], sample: float) -> None:
        """Until they are over: what they do in each slice of time."""
        sampler = Sampler(self.generators, workloads, sample)
        self._slices = sampler.slices
        for workload in workloads:
            while not workload.wait(sampler.due_in()):
                sampler.take()
        sampler.take()

    # ---- figures ----

    def _counters(self) -> dict[str, Any]:
        """What is subtracted, by context name and by (owner, lock)."""
        counters: dict[str, Any] = {}
        for name, context in self.contexts.items():
            info = context.info
            counters[name] = {
                **_fields(context.stats()),
                "cpu_user_ns": info.cpu_user_ns,
                "cpu_system_ns": info.cpu_system_ns,
                "voluntary_switches": info.voluntary_switches,
                "involuntary_switches": info.involuntary_switches,
            }
        for lock in self.engine.locks():
            counters[f"lock {lock.owner} {lock.lock}"] = (lock.acquisitions, lock.contended)
        return counters

    def _queues(self) -> list[dict[str, Any]]:
        found = []
        for name, device in self.devices.items():
            contexts = self.setup.device(name).queues[self.process :: self.setup.processes]
            for index, (queue, context) in enumerate(zip(device.queues, contexts, strict=True)):
                place = {"device": name, "index": index, "context": context, "process": self.process}
                found.append({**place, **_fields(queue.stats())})
        return found

    def _nodes(self) -> list[dict[str, Any]]:
        filenames = {node.name: node.filename for node in self.setup.nodes}
        return [
            {
                "name": name,
                "process": self.process,
                "driver": node.info.driver,
                "filename": filenames[name],
                "bytes": node.size,
                "stats": _fields(node.stats()),
            }
            for name, node in self.nodes.items()
        ]

    def _locks(self, before: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = []
        for lock in self.engine.locks():
            acquired, contended = before.get(f"lock {lock.owner} {lock.lock}", (0, 0))
            found.append(
                {
                    "owner": lock.owner,
                    "lock": lock.lock,
                    "process": self.process,
                    "acquisitions": lock.acquisitions - acquired,
                    "contended": lock.contended - contended,
                    "wait_ns": fio.brief(lock.wait_ns),
                    "hold_ns": fio.brief(lock.hold_ns),
                }
            )
        return found


def refuse_holes(node: BlockNode, name: str) -> None:
    """Holes and unwritten extents are read without any I/O: a figure from them would flatter."""
    if not node.info.holes:
        return
    for extent in node.extents():
        if extent.unwritten or not extent.data:
            what = "an unwritten extent" if extent.unwritten else "a hole"
            raise UserError(
                f"{name}: has {what} of {extent.length} bytes at offset {extent.start}, which is read "
                "without I/O and would flatter the figures: write the image fully, or allow it "
                "(--allow-holes)"
            )


def describe_context(context: AioContext, asked: tuple[int, ...] | None, process: int = 0) -> dict[str, Any]:
    info = context.info
    return {
        "name": context.name,
        "process": process,
        "requested_cpus": list(asked) if asked is not None else None,
        "effective_cpus": list(context.effective_cpus),
        "worker_cpus": list(info.worker_cpus),
        "numa_node": info.numa_node,
        "last_cpu": info.last_cpu,
        "backend": info.backend,
        "backend_reason": info.backend_reason,
        "poll_max_ns": info.poll_max_ns,
    }


def _result(generator: Generator, workload: Workload) -> dict[str, Any]:
    result = workload.result()
    spec: WorkloadSpec = generator.workload
    return {
        "job": spec.name,
        "index": generator.index,
        "context": generator.context,
        "generator_context": generator.home or generator.context,
        "seed": generator.seed,
        "iodepth": spec.iodepth,
        "reads": result.reads,
        "writes": result.writes,
        "bytes_read": result.bytes_read,
        "bytes_written": result.bytes_written,
        "flushes": result.flushes,
        "errors": result.errors,
        "error_errno": result.error_errno,
        "error_offset": result.error_offset,
        "verify_errors": result.verify_errors,
        "open_loop": bool(result.open_loop),
        "late": result.late,
        "unissued": result.unissued,
        "seconds": result.seconds,
        "depth": list(result.depth),
        "read_latency": result.read_latency.to_dict(),
        "write_latency": result.write_latency.to_dict(),
        "discards": result.discards,
        "bytes_discarded": result.bytes_discarded,
        "flush_latency": result.flush_latency.to_dict(),
        "discard_latency": result.discard_latency.to_dict(),
    }


def _fields(statistics: Any) -> dict[str, Any]:
    return dataclasses.asdict(statistics)


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value - before.get(key, 0) if isinstance(value, int) and key not in _LEVELS else value
        for key, value in after.items()
    }
