"""`engine doctor --suggest IMAGE`: measures what contexts, CPUs and polling an image wants; says it as TOML.

Four questions, one after another, each by short runs of its candidates in turns; medians decide, and what is
no clear gain is not suggested. The image is only read. The output is an experiment file for `engine run`.
"""

from __future__ import annotations

import os
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from engine.experiment.errors import UsageError, UserError
from engine.experiment.host import (
    OTHER_LIMIT_PERCENT,
    STEAL_LIMIT_PERCENT,
    HostLoad,
    HostMeter,
    ProcessUsage,
    cpu_model,
    format_cpu_list,
    online_cpus,
    parse_cpu_list,
    read_text,
)
from engine.experiment.model import ContextSpec, DeviceSpec, EngineSpec, NodeSpec, Setup, WorkloadSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

ROUNDS = 3
DEFAULT_POLL_NS = 32768
POLLS_NS = (0, DEFAULT_POLL_NS, 4 * DEFAULT_POLL_NS)
DEPTHS = (1, 4, 16, 64)
CONTEXTS_MAX = 8
DEPTH_OF_BACKENDS = 32
BLOCK_BYTES = 4096

# What counts as a gain.
POLL_GAIN = 0.05  # of the latency at depth 1
DEPTH_SHARE = 0.95  # of the best rate
CONTEXT_SHARE = 0.90  # of the best rate: each costs a CPU
BACKEND_GAIN = 1.10  # of io_uring's rate, to take threads instead

K = TypeVar("K")


@dataclass(frozen=True)
class Point:
    """What is measured once."""

    cpus: tuple[int, ...]  # one context on each
    iodepth: int
    poll_max_ns: int = DEFAULT_POLL_NS
    aio: str = "auto"


@dataclass(frozen=True)
class Figure:
    """What a run showed; latency and CPU time of one request, in microseconds."""

    iops: float
    latency_us: float
    cpu_us: float

    def __str__(self) -> str:
        return f"{self.iops:,.0f} IOPS, {self.latency_us:.1f} µs, {self.cpu_us:.2f} µs of CPU"


@dataclass(frozen=True)
class Choice:
    """One answer, and the lines of comment that give its reason."""

    value: int | str
    reason: tuple[str, ...]


@dataclass(frozen=True)
class Suggestion:
    aio: Choice
    iodepth: Choice
    poll: Choice
    contexts: Choice
    cpus: tuple[int, ...]


Measure = Callable[[Point], Figure]


# ---- the questions ----


def suggest(measure: Measure, backends: Sequence[str], cpus: Sequence[int]) -> Suggestion:
    """`backends`: those that work here. `cpus`: one of each core, those to be used first before."""
    base = Point((cpus[0],), DEPTH_OF_BACKENDS)
    aio = choose_backend(rounds(measure, {name: replace(base, aio=name) for name in backends}))
    base = replace(base, aio=str(aio.value))
    depth = choose_depth(rounds(measure, {depth: replace(base, iodepth=depth) for depth in DEPTHS}))
    poll = choose_poll(
        rounds(measure, {poll: replace(base, iodepth=1, poll_max_ns=poll) for poll in POLLS_NS})
    )
    base = replace(base, iodepth=int(depth.value), poll_max_ns=int(poll.value))
    numbers = [number for number in (1, 2, 4, 8) if number <= min(len(cpus), CONTEXTS_MAX)]
    contexts = choose_contexts(
        rounds(measure, {number: replace(base, cpus=tuple(cpus[:number])) for number in numbers})
    )
    return Suggestion(aio, depth, poll, contexts, tuple(cpus[: int(contexts.value)]))


def runs_of(backends: Sequence[str], cpus: Sequence[int]) -> int:
    """How many measurements `suggest` makes, so that the time is known before."""
    numbers = sum(number <= min(len(cpus), CONTEXTS_MAX) for number in (1, 2, 4, 8))
    return ROUNDS * (len(backends) + len(DEPTHS) + len(POLLS_NS) + numbers)


def rounds(measure: Measure, points: Mapping[K, Point]) -> dict[K, Figure]:
    """Every candidate in turn, and again: what the machine does meanwhile meets all of them. Medians."""
    found: dict[K, list[Figure]] = {key: [] for key in points}
    for _ in range(ROUNDS):
        for key, point in points.items():
            found[key].append(measure(point))
    return {key: median(figures) for key, figures in found.items()}


def median(figures: Sequence[Figure]) -> Figure:
    return Figure(
        statistics.median(figure.iops for figure in figures),
        statistics.median(figure.latency_us for figure in figures),
        statistics.median(figure.cpu_us for figure in figures),
    )


def choose_backend(figures: Mapping[str, Figure]) -> Choice:
    lines = measured(figures, f"at depth {DEPTH_OF_BACKENDS}")
    if "io_uring" not in figures:
        return Choice("auto", ("io_uring does not work here (engine doctor says why): threads do it", *lines))
    threads = figures.get("threads")
    if threads is not None and threads.iops > BACKEND_GAIN * figures["io_uring"].iops:
        return Choice("threads", ("threads are clearly faster here", *lines))
    return Choice("auto", ("io_uring, which auto takes", *lines))


def choose_depth(figures: Mapping[int, Figure]) -> Choice:
    value = fewest(figures, DEPTH_SHARE)
    reason = f"the least depth with {DEPTH_SHARE:.0%} of the best rate; a deeper queue only waits longer"
    return Choice(value, (reason, *measured(figures, "", "depth ")))


def choose_poll(figures: Mapping[int, Figure]) -> Choice:
    """The shortest poll that is within the gain of the best latency; none where sleeping is as fast."""
    best = min(figure.latency_us for figure in figures.values())
    value = min(poll for poll, figure in figures.items() if figure.latency_us * (1 - POLL_GAIN) <= best)
    saved = figures[0].latency_us - figures[value].latency_us
    if value == 0:
        reason = f"polling saves less than {POLL_GAIN:.0%} of a request's latency here: sleep at once"
    else:
        reason = f"saves {saved:.1f} µs of {figures[0].latency_us:.1f} µs a request when one is in flight"
    return Choice(value, (reason, *measured(figures, "", "poll-max-ns ")))


def choose_contexts(figures: Mapping[int, Figure]) -> Choice:
    value = fewest(figures, CONTEXT_SHARE)
    if len(figures) == 1:
        reason = "this process may use one core only: nothing else was tried"
    else:
        reason = f"the fewest with {CONTEXT_SHARE:.0%} of the best rate: each costs a CPU"
    return Choice(value, (reason, *measured(figures, "", "contexts: ")))


def fewest(figures: Mapping[int, Figure], share: float) -> int:
    best = max(figure.iops for figure in figures.values())
    return min(number for number, figure in figures.items() if figure.iops >= share * best)


def measured(figures: Mapping[K, Figure], where: str, what: str = "") -> tuple[str, ...]:
    return tuple(f"  {what}{key}{' ' + where if where else ''}: {figure}" for key, figure in figures.items())


# ---- the host ----


def one_cpu_of_each_core() -> list[int]:
    """Of those that this process may use; CPU 0, which often serves the interrupts, comes last where
    there is another."""
    allowed = sorted(os.sched_getaffinity(0) & set(online_cpus()))
    taken: set[int] = set()
    found = []
    for cpu in allowed:
        if cpu in taken:
            continue
        found.append(cpu)
        text = read_text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            taken.update(parse_cpu_list(text or ""))
        except ValueError:
            taken.add(cpu)
    return sorted(found, key=lambda cpu: (cpu == 0, cpu))


def working_backends() -> list[str]:
    import engine

    return [name for name in ("io_uring", "threads") if engine.probe_backend(name).works]


# ---- one measurement ----


def node_of(arguments: Namespace) -> NodeSpec:
    """The image as a node that is only read; or none at all."""
    if arguments.null is not None:
        if arguments.image:
            raise UsageError("--null is a node of its own: leave out IMAGE")
        return NodeSpec("disk", {"driver": "null", "size": arguments.null, "node-name": "disk"})
    if not arguments.image:
        raise UsageError("--suggest needs an IMAGE, or --null SIZE")
    below = "" if arguments.format == "file" else "file."
    options = {"driver": arguments.format, "node-name": "disk", "read-only": True}
    if below:
        options["file.driver"] = "file"
    options[f"{below}filename"] = arguments.image
    if not arguments.buffered:
        options[f"{below}cache.direct"] = True
    return NodeSpec("disk", options)


def make_setup(node: NodeSpec, point: Point, seconds: float, allow_holes: bool) -> Setup:
    names = tuple(f"io{index}" for index in range(len(point.cpus)))
    contexts = tuple(
        ContextSpec(name, (cpu,), point.poll_max_ns, point.aio)
        for name, cpu in zip(names, point.cpus, strict=True)
    )
    load = WorkloadSpec("rand", device="vda", bs=BLOCK_BYTES, iodepth=point.iodepth, runtime=seconds)
    device = DeviceSpec("vda", node.name, names, read_only=True)
    return Setup(EngineSpec(), contexts, (node,), (device,), (load,), allow_holes=allow_holes)


def run_point(setup: Setup) -> Figure:
    from engine.experiment.measure import Rig
    from engine.experiment.record import failures, make_record

    with Rig(setup) as rig:
        meter = HostMeter()
        part = rig.run()
        record = make_record(setup, [part], meter.load(), host=False)
    if part["partial"]:
        raise KeyboardInterrupt
    if wrong := failures(record):
        raise UserError(wrong[0])
    own, latency = record["engine"], record["jobs"][0]["read"]["lat_ns"]
    if not own["requests"]:
        raise UserError("no request completed in the time of a measurement: give it more (--runtime 2s)")
    return Figure(own["iops"], latency["mean"] / 1e3, own["cpu"]["us_per_request"])


# ---- the command ----


def command(arguments: Namespace) -> int:
    from engine.cli.bench import refuse_debug_build

    node = node_of(arguments)
    refuse_debug_build(arguments.allow_debug_build)
    backends, cpus = working_backends(), one_cpu_of_each_core()
    if not cpus:
        raise UserError("this process may use no CPU that is online")
    total, done = runs_of(backends, cpus), 0
    seconds = arguments.runtime

    def measure(point: Point) -> Figure:
        nonlocal done
        figure = run_point(make_setup(node, point, seconds, arguments.allow_holes))
        done += 1
        if sys.stderr.isatty():
            print(f"\r{done} of {total} measurements", end="\n" if done == total else "", file=sys.stderr)
        return figure

    meter, usage = HostMeter(), ProcessUsage.now()
    found = suggest(measure, backends, cpus)
    used = ProcessUsage.now().since(usage)
    head = [
        f"Measured by engine doctor --suggest: {total} runs of {seconds:g} s in turns, medians; "
        f"{BLOCK_BYTES >> 10} KiB random reads",
        *host_lines(meter.load(), used.user + used.system),
    ]
    print("\n".join(document(found, node, head)))
    return 0


def host_lines(load: HostLoad, own_seconds: float) -> list[str]:
    import engine

    system = os.uname()
    lines = [
        f"{cpu_model()}, CPUs {format_cpu_list(online_cpus())}, {system.sysname} {system.release}, "
        f"engine {engine.build_info().version}, clock {engine.clock_name()}",
    ]
    if load.steal_percent > STEAL_LIMIT_PERCENT:
        lines.append(f"other guests took {load.steal_percent:.1f} % of the CPU time: measure again, later")
    if (other := load.other_percent(own_seconds)) > OTHER_LIMIT_PERCENT:
        lines.append(f"other processes took {other:.0f} % of the CPU time: measure on a quiet machine")
    return lines


def document(found: Suggestion, node: NodeSpec, head: Iterable[str]) -> list[str]:
    """An experiment file whose comments give the reasons."""
    lines = [f"# {line}" for line in head]
    if node.filename is None:
        lines.append(
            "# A null node: what a request costs inside the engine. Polling and depth need a real disk."
        )
    elif node.buffered_file:
        lines.append("# Through the page cache: software cost, not a disk's speed.")
    for title, choice in (
        ("contexts", found.contexts),
        ("poll-max-ns", found.poll),
        ("aio", found.aio),
        ("iodepth", found.iodepth),
    ):
        lines += ["#", f"# {title} = {choice.value}: {choice.reason[0]}"]
        lines += [f"# {line}" for line in choice.reason[1:]]
    names = [f"io{index}" for index in range(len(found.cpus))]
    for name, cpu in zip(names, found.cpus, strict=True):
        lines += ["", f"[context.{name}]", f"cpus = [{cpu}]"]
        lines += [f"poll-max-ns = {found.poll.value}", f"aio = {quoted(found.aio.value)}"]
    lines += ["", "[blockdev.disk]"]
    lines += [f"{key} = {toml(value)}" for key, value in node.options.items() if key != "node-name"]
    lines += ["", "[device.vda]", 'node = "disk"', f"queues = [{', '.join(map(quoted, names))}]"]
    lines += ["", "[workload.rand]", 'device = "vda"', 'rw = "randread"', 'bs = "4k"']
    lines += [f"iodepth = {found.iodepth.value}", 'runtime = "5s"']
    return lines


def toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else quoted(value)


def quoted(value: object) -> str:
    """A TOML basic string: JSON's is one."""
    import json

    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
