"""What `engine bench` prints for people: the figures, then what explains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.experiment.host import OTHER_LIMIT_PERCENT, STEAL_LIMIT_PERCENT, format_cpu_list
from engine.report import figures
from engine.report.table import format_table

_TOP_LOCKS = 5


def bench_lines(record: Mapping[str, Any]) -> list[str]:
    engine = record["engine"]
    return [
        *_title(engine),
        "",
        *_rates(record),
        "",
        *_depth(record),
        *_late(engine),
        "",
        *_contexts(engine),
        *_locks(engine),
        "",
        *_notes(record),
    ]


def _title(engine: Mapping[str, Any]) -> list[str]:
    workload = engine["options"]["workloads"][0]
    count = len(engine["generators"])
    what = "queue" if workload["device"] else "generator"
    per = figures.plural(count, what)
    loop = "open loop" if engine["loop"] == "open_loop" else "closed loop"
    rate = f" at {figures.count(workload['rate_iops'])} IOPS" if workload["rate_iops"] else ""
    locking = "global lock" if engine["options"]["engine"]["locking"] == "global" else "per-node locks"
    lines = [
        f"{workload['rw']} of {figures.size(workload['bs'])}, "
        f"depth {workload['iodepth']} {figures.TIMES} {per}, {loop}{rate}, "
        f"{locking}, {engine['seconds']:.2f} s"
    ]
    for node in engine["nodes"]:
        spec = next(n for n in engine["options"]["nodes"] if n["name"] == node["name"])
        lines.append(f"on {_node(node, spec['options'])}")
    if engine["partial"]:
        lines.append("PARTIAL: stopped by Ctrl-C before its end")
    return lines


def _node(node: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    size = figures.size(node["bytes"])
    if not node["filename"]:
        latency = int(options.get("latency-ns", 0))
        delay = f", {figures.duration_ns(latency)} a request" if latency else ""
        return f"{node['driver']} ({size}{delay})"
    direct = options.get("cache.direct", options.get("file.cache.direct")) in (True, "on")
    cache = "O_DIRECT" if direct else "buffered"
    return f"{node['filename']} ({node['driver']}, {size}, {cache})"


def _rates(record: Mapping[str, Any]) -> list[str]:
    head = ["", "", "IOPS", "bandwidth", "mean", "p50", "p95", "p99", "p99.9", "max", "CPU/request"]
    jobs = record["jobs"]
    rows = []
    for job in jobs:
        for way in ("read", "write"):
            side = job[way]
            if not side["total_ios"]:
                continue
            rows.append(
                [
                    job["jobname"] if len(jobs) > 1 else "",
                    way,
                    figures.count(side["iops"]),
                    figures.bandwidth(side["bw_bytes"]),
                    *_latencies(side["clat_ns"]),
                    "",
                ]
            )
    if not rows:
        return ["  no request completed"]
    cpu = figures.microseconds(record["engine"]["cpu"]["us_per_request"])
    if len(rows) == 1:
        rows[0][-1] = cpu
    else:
        total = sum(job[way]["bw_bytes"] for job in jobs for way in ("read", "write"))
        rows.append(
            ["", "all", figures.count(record["engine"]["iops"]), figures.bandwidth(total), *[""] * 6, cpu]
        )
    return format_table(head, rows, left=2)


def _latencies(block: Mapping[str, Any]) -> list[str]:
    if "percentile" not in block:
        return [figures.NONE] * 6
    percentile = block["percentile"]
    shown = [percentile[f"{p:.6f}"] for p in (50, 95, 99, 99.9)]
    return [figures.duration_ns(value) for value in (block["mean"], *shown, block["max"])]


def _depth(record: Mapping[str, Any]) -> list[str]:
    lines = []
    for job in record["jobs"]:
        shares = [f"{level}: {share:.3g} %" for level, share in job["iodepth_level"].items() if share >= 0.1]
        name = f" of {job['jobname']}" if len(record["jobs"]) > 1 else ""
        lines.append(f"depth achieved{name}   " + "   ".join(shares or [figures.NONE]))
    return lines


def _late(engine: Mapping[str, Any]) -> list[str]:
    if engine["loop"] != "open_loop":
        return []
    late = sum(generator["late"] for generator in engine["generators"])
    share = figures.percent(late / engine["requests"] if engine["requests"] else None)
    lines = [f"started late       {late} requests ({share}): the depth was full at their intended start"]
    if unissued := sum(generator["unissued"] for generator in engine["generators"]):
        lines.append(
            f"never started      {unissued} requests: the depth was full from their intended start to the "
            "end; they are among the latencies with that wait"
        )
    return lines


def _contexts(engine: Mapping[str, Any]) -> list[str]:
    head = ["context", "CPU", "asked", "backend", "IOPS", "user", "system", "poll", "asleep"]
    head += ["ops/submit", "syscalls/op", "lock wait"]
    rows = []
    reasons: dict[str, list[str]] = {}
    nanoseconds = engine["seconds"] * 1e9
    for context in engine["contexts"]:
        stats, batches = context["stats"], context["batches"]
        own = [g for g in engine["generators"] if g["context"] == context["name"]]
        reasons.setdefault(figures.backend(context), []).append(context["name"])
        rows.append(
            [
                context["name"],
                format_cpu_list(context["effective_cpus"]),
                _asked(context),
                context["backend"],
                figures.count(sum(g["iops"] for g in own)) if own else "generates",
                *(
                    figures.percent(stats[key] / nanoseconds if nanoseconds else None)
                    for key in ("cpu_user_ns", "cpu_system_ns", "poll_ns", "sleep_ns")
                ),
                _ratio(batches["operations_per_submit"]),
                _ratio(batches["system_calls_per_operation"]),
                figures.percent(stats["lock_wait_ns"] / nanoseconds) if stats["lock_wait_ns"] else "",
            ]
        )
    lines = format_table(head, rows, left=4)
    return lines + [f"  {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _asked(context: Mapping[str, Any]) -> str:
    requested: Sequence[int] | None = context["requested_cpus"]
    return format_cpu_list(tuple(requested)) if requested is not None else "any"


def _ratio(value: float | None) -> str:
    return figures.three_digits(value) if value else figures.NONE


def _locks(engine: Mapping[str, Any]) -> list[str]:
    """Those that someone waited for, the worst first; nothing to say is said by one line."""
    locks = sorted(
        (lock for lock in engine["locks"] if lock["contended"]),
        key=lambda lock: (lock["wait_ns"]["total_ns"], lock["contended"]),
        reverse=True,
    )
    acquired = sum(lock["acquisitions"] for lock in engine["locks"])
    if not locks:
        return ["", f"locks: {figures.count(acquired)} acquisitions, none contended"]
    head = ["lock", "of", "acquired", "contended", "waited", "wait p50", "wait p99", "hold p50"]
    rows = []
    for lock in locks[:_TOP_LOCKS]:
        wait, hold = lock["wait_ns"], lock["hold_ns"]
        profiled = bool(wait["count"])
        rows.append(
            [
                lock["lock"],
                lock["owner"],
                figures.count(lock["acquisitions"]),
                figures.percent(lock["contended"] / lock["acquisitions"]),
                figures.duration_ns(wait["total_ns"]) if profiled else "",
                figures.duration_ns(wait["p50"]) if profiled else "",
                figures.duration_ns(wait["p99"]) if profiled else "",
                figures.duration_ns(hold["p50"]) if hold["count"] else "",
            ]
        )
    return ["", *format_table(head, rows, left=2)]


def _notes(record: Mapping[str, Any]) -> list[str]:
    engine = record["engine"]
    build, host = engine["build"], engine["host"]
    kind = "" if build["optimised"] and not build["sanitized"] else ", DEBUG BUILD"
    lines = [
        f"{host['cpu_model']}, {host['kernel']}, engine {build['version']} ({build['compiler']}{kind}); "
        f"steal {engine['steal_percent']:.1f} %, other processes {engine['other_percent']:.0f} %, "
        f"clock {engine['clock']}"
    ]
    if engine["steal_percent"] > STEAL_LIMIT_PERCENT:
        lines.append(
            f"warning: more than {STEAL_LIMIT_PERCENT:g} % of the CPU time went to other guests: "
            "measure again"
        )
    if engine["other_percent"] > OTHER_LIMIT_PERCENT:
        lines.append(
            f"warning: other processes took {engine['other_percent']:.0f} % of the CPU time: "
            "measure on a quiet machine"
        )
    if any(_page_cache(node["options"]) for node in engine["options"]["nodes"]):
        lines.append("note: through the page cache, so this is the cost of the software, not of the disk")
    return lines


def _page_cache(options: Mapping[str, Any]) -> bool:
    from engine.experiment.model import NodeSpec

    return NodeSpec("", options).buffered_file is not None
