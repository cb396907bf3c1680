"""One run as one document: fio's `jobs`, and beside them under `engine` what fio has no word for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from engine.experiment import fio
from engine.experiment.host import HostLoad, describe_host
from engine.experiment.model import Setup, WorkloadSpec
from engine.experiment.series import merge_slices, settled
from engine.histogram import Histogram

_SUMS = (
    "reads",
    "writes",
    "bytes_read",
    "bytes_written",
    "flushes",
    "discards",
    "bytes_discarded",
    "errors",
    "verify_errors",
    "late",
    "unissued",
)


def make_record(
    setup: Setup, parts: Sequence[Mapping[str, Any]], load: HostLoad, host: bool = True
) -> dict[str, Any]:
    """Puts the parts of all processes together; `parts` are what `Rig.run` returned in each."""
    import engine

    generators = [generator for part in parts for generator in part["generators"]]
    requests = sum(generator["reads"] + generator["writes"] for generator in generators)
    seconds = max(part["seconds"] for part in parts)
    cpu = {key: sum(part["cpu"][key] for part in parts) for key in parts[0]["cpu"]}
    contexts = [_context(context) for part in parts for context in part["contexts"]]
    locks = [lock for part in parts for lock in part["locks"]]
    slices = merge_slices(part["slices"] for part in parts)
    jobs = [
        _job(setup, workload, [g for g in generators if g["job"] == workload.name], cpu, requests)
        for workload in setup.workloads
    ]
    record: dict[str, Any] = {
        "fio version": f"blkengine-{engine.build_info().version}",
        **_now(),
        "jobs": jobs,
        "engine": {
            "format": 1,
            "loop": "open_loop" if any(w.open_loop for w in setup.workloads) else "closed_loop",
            "partial": any(part["partial"] for part in parts),
            "seconds": seconds,
            "requests": requests,
            "iops": sum(job[way]["iops"] for job in jobs for way in ("read", "write")),
            "cpu": {
                "user_seconds": cpu["user"],
                "system_seconds": cpu["system"],
                "us_per_request": 1e6 * (cpu["user"] + cpu["system"]) / requests if requests else None,
            },
            "lock_wait": _lock_wait(setup, contexts, locks, seconds),
            "contexts": contexts,
            "generators": [_generator(generator) for generator in generators],
            "histograms": _histograms(generators),
            "queues": [queue for part in parts for queue in part["queues"]],
            "nodes": [node for part in parts for node in part["nodes"]],
            "locks": locks,
            "series": slices,
            "settled": settled(slices),
            "traces": _traces(parts),
            "processes": setup.processes,
            "clock": engine.clock_name(),
            "steal_percent": round(load.steal_percent, 3),
            "other_percent": round(load.other_percent(cpu["user"] + cpu["system"]), 3),
            "options": setup.to_json(),
        },
    }
    if host:
        record["engine"] |= {"build": build(), "host": describe_host()}
    return record


def build() -> dict[str, Any]:
    """What was measured: versions, compiler and flags of the native core."""
    import dataclasses

    import engine

    return dataclasses.asdict(engine.build_info())


def failures(record: Mapping[str, Any]) -> list[str]:
    """One line for each workload with requests that failed or data that was wrong."""
    lines = []
    for job in record["jobs"]:
        own = [g for g in record["engine"]["generators"] if g["job"] == job["jobname"]]
        failed = sum(generator["errors"] for generator in own)
        if failed:
            first = next(generator for generator in own if generator["errors"])
            reason = os.strerror(first["error_errno"]) if first["error_errno"] else "unknown error"
            lines.append(
                f"{job['jobname']}: {failed} request{'s' if failed > 1 else ''} failed, "
                f"the first at offset {first['error_offset']}: {reason}"
            )
        if wrong := sum(generator["verify_errors"] for generator in own):
            lines.append(
                f"{job['jobname']}: {wrong} block{'s' if wrong > 1 else ''} read back other than written"
            )
    return lines


def merge(generators: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The generators of one workload as one."""
    whole: dict[str, Any] = {key: sum(g[key] for g in generators) for key in _SUMS}
    whole["seconds"] = max((g["seconds"] for g in generators), default=0.0)
    whole["iodepth"] = max((g["iodepth"] for g in generators), default=0)
    whole["error_errno"] = next((g["error_errno"] for g in generators if g["errors"]), 0)
    whole["depth"] = [sum(g["depth"][level] for g in generators) for level in range(8)]
    for key in ("read_latency", "write_latency", "flush_latency", "discard_latency"):
        whole[key] = fio.merged(Histogram.from_dict(g[key]) for g in generators).to_dict()
    return whole


def _lock_wait(
    setup: Setup, contexts: Sequence[Mapping[str, Any]], locks: Sequence[Mapping[str, Any]], seconds: float
) -> dict[str, Any]:
    """Time waited for locks, as a share of the contexts' time; None where nobody measured it.

    In global mode the contexts measure it always. Otherwise only a lock profile does; but where no lock was
    contended, nobody waited.
    """
    if setup.engine.locking == "global":
        source, ns = "engine mutex", sum(context["stats"]["lock_wait_ns"] for context in contexts)
    elif setup.engine.lock_profile:
        source, ns = "lock profile", sum(lock["wait_ns"]["total_ns"] for lock in locks)
    elif any(lock["contended"] for lock in locks):
        return {"source": "not measured: contended locks, and no lock profile", "ns": None, "share": None}
    else:
        source, ns = "no lock was contended", 0
    total = len(contexts) * seconds * 1e9
    return {"source": source, "ns": ns, "share": ns / total if total else 0.0}


def _job(
    setup: Setup,
    workload: WorkloadSpec,
    generators: Sequence[Mapping[str, Any]],
    cpu: Mapping[str, float],
    all_requests: int,
) -> dict[str, Any]:
    """CPU time is known for the process alone: where several workloads share it, it is split by requests."""
    part = merge(generators)
    requests = part["reads"] + part["writes"]
    share = requests / all_requests if all_requests else 1.0
    options = {
        **_what(workload),
        "iodepth": str(workload.iodepth),
        "numjobs": str(len(generators)),
        "ioengine": "blkengine",
        "filename": _filename(setup, workload),
        "direct": "0" if any(n.buffered_file for n in setup.nodes) else "1",
        "randseed": str(workload.seed),
    }
    if workload.runtime:
        options["runtime"] = f"{workload.runtime:g}"
    if workload.count:
        options["number_ios"] = str(workload.count)
    if workload.rate_iops:
        options["rate_iops"] = str(workload.rate_iops)
    return fio.job(workload.name, part, {key: value * share for key, value in cpu.items()}, options)


def _what(workload: WorkloadSpec) -> dict[str, str]:
    replay = workload.replay
    if replay is None:
        return {"rw": workload.rw, "bs": str(workload.bs)}
    options = {"read_iolog": replay.path, "replay_no_stall": str(int(not replay.open_loop))}
    if replay.open_loop:
        options["replay_time_scale"] = f"{100 * float(replay.speed or 1):g}"
    return options


def _filename(setup: Setup, workload: WorkloadSpec) -> str:
    node = next(node for node in setup.nodes if node.name == setup.node_of(workload))
    return node.filename or str(node.options.get("driver", node.name))


def _context(context: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what is read off the counters: how well the work was batched."""
    stats = context["stats"]

    def ratio(above: str, below: str) -> float | None:
        return round(stats[above] / stats[below], 3) if stats[below] else None

    batches = {
        "operations_per_submit": ratio("submitted", "submit_batches"),
        "completions_per_turn": ratio("completed", "turns"),
        "system_calls_per_operation": ratio("system_calls", "completed"),
        "poll_success": ratio("poll_successes", "poll_attempts"),
    }
    return {**context, "batches": batches}


def _traces(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the first process that has some: the others do the same."""
    return next(
        (dict(part["traces"]) for part in parts if part["traces"]["jobs"]), {"jobs": [], "examples": []}
    )


def _generator(generator: Mapping[str, Any]) -> dict[str, Any]:
    """Without the histograms: the job has them all together."""
    kept = {key: value for key, value in generator.items() if not key.endswith("_latency")}
    whole = fio.merged(Histogram.from_dict(generator[key]) for key in ("read_latency", "write_latency"))
    requests = generator["reads"] + generator["writes"]
    seconds = generator["seconds"]
    return {**kept, "iops": requests / seconds if seconds else 0.0, "lat_ns": fio.brief(whole)}


def _histograms(generators: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Latencies of each job in HdrHistogram's encoding: they can be merged over runs."""
    found: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(generator["job"] for generator in generators):
        own = [generator for generator in generators if generator["job"] == name]
        found[name] = {
            way: fio.merged(Histogram.from_dict(g[f"{way}_latency"]) for g in own).to_hdr()
            for way in ("read", "write")
        }
    return found


def _now() -> dict[str, Any]:
    import time

    now = time.time()
    return {"timestamp": int(now), "timestamp_ms": int(now * 1000), "time": time.ctime(now)}
