"""Traces of a run, put together: how long its requests spent in each stage, by bands of latency, and a few
requests as they were, for a closer look.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.trace import STAGES

if TYPE_CHECKING:
    from engine import BlockNode, Engine
    from engine.trace import Trace, Traces

# From the fastest to the slowest: between these percentiles of all traces.
BANDS = ((0.0, 50.0), (50.0, 90.0), (90.0, 99.0), (99.0, 99.9), (99.9, 100.0))
SLOWEST_KEPT, EVENLY_KEPT = 20, 60
WHERE_IT_MATTERS = ("lock wait", "overlap wait", "held back")  # told apart by node


def node_names(nodes: Iterable[BlockNode]) -> dict[int, str]:
    """By their number in traces; of all that lie below them, too."""
    found: dict[int, str] = {}
    for node in nodes:
        found[node.info.id] = node.name
        found |= node_names(node.children.values())
    return found


def context_names(engine: Engine) -> dict[int, str]:
    return {context.info.id: context.name for context in engine.contexts.values()}


def joined(parts: Sequence[Traces]) -> tuple[int, list[Trace]]:
    """The traces of several generators as those of one: who drew more often gives as many as the others."""
    parts = [part for part in parts if part.every]
    every = max((part.every for part in parts), default=0)
    return every, [trace for part in parts for trace in part.requests[:: every // part.every]]


def bands(traces: Sequence[Trace], nodes: Mapping[int, str]) -> list[dict[str, Any]]:
    """Each with the mean time of its requests and of each of their stages, in ns."""
    by_latency = sorted(traces, key=lambda trace: trace.latency_ns)
    found = []
    for low, high in BANDS:
        own = by_latency[_rank(low, len(by_latency)) : _rank(high, len(by_latency))]
        if not own:
            continue
        times: dict[tuple[str, str], int] = {}
        for trace in own:
            for stage in trace.stages():
                node = nodes.get(stage.node, "") if stage.name in WHERE_IT_MATTERS else ""
                key = (stage.name, node)
                times[key] = times.get(key, 0) + stage.end_ns - stage.begin_ns
        found.append(
            {
                "from": low,
                "to": high,
                "traces": len(own),
                "mean_ns": sum(trace.latency_ns for trace in own) / len(own),
                "stages": [
                    {"stage": name, "node": node, "mean_ns": times[name, node] / len(own)}
                    for name, node in sorted(times, key=lambda key: (STAGES.index(key[0]), key[1]))
                ],
            }
        )
    return found


def _rank(percentile: float, count: int) -> int:
    return count if percentile == 100.0 else int(percentile / 100.0 * count)


def examples(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """The slowest ones, and others evenly from all; in order of their start."""
    slowest = sorted(traces, key=lambda trace: -trace.latency_ns)[:SLOWEST_KEPT]
    in_time = sorted(traces, key=lambda trace: trace.start_ns)
    evenly = in_time[:: max(1, -(-len(in_time) // EVENLY_KEPT))]
    chosen = {(trace.request_id, trace.start_ns): trace for trace in (*slowest, *evenly)}
    return [as_json(trace) for trace in sorted(chosen.values(), key=lambda trace: trace.start_ns)]


def as_json(trace: Trace) -> dict[str, Any]:
    """With its stages, not its marks: [begin, end, stage, node, context], ns from the request's start."""
    return {
        "id": trace.request_id,
        "op": trace.op,
        "offset": trace.offset,
        "length": trace.length,
        "result": trace.result,
        "start_ns": trace.start_ns,
        "latency_ns": trace.latency_ns,
        "front": trace.front_context,
        "marks_lost": trace.marks_lost,
        "stages": [
            [s.begin_ns - trace.start_ns, s.end_ns - trace.start_ns, s.name, s.node, s.context]
            for s in trace.stages()
        ],
    }


def of_process(
    engine: Engine, nodes: Iterable[BlockNode], by_job: Mapping[str, Sequence[Traces]]
) -> dict[str, Any]:
    """What a process has to say of its traces."""
    names = node_names(nodes)
    jobs, kept = [], []
    for job, parts in by_job.items():
        every, traces = joined(parts)
        jobs.append(
            {
                "job": job,
                "every": every,
                "traces": len(traces),
                "incomplete": sum(1 for trace in traces if trace.marks_lost),
                "bands": bands(traces, names),
            }
        )
        kept += examples(traces)
    return {
        "jobs": jobs,
        "examples": sorted(kept, key=lambda one: int(one["start_ns"])),
        "nodes": {str(number): name for number, name in names.items()},
        "contexts": {str(number): name for number, name in context_names(engine).items()},
    }
