"""`engine bench`: one workload on one topology, as a table or in the layout of fio's JSON."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from engine.experiment.errors import UsageError, UserError
from engine.experiment.model import ContextSpec, DeviceSpec, EngineSpec, NodeSpec, Setup, WorkloadSpec

DEFAULT_RUNTIME = 5.0


def bench(arguments: Namespace) -> int:
    setup = make_setup(arguments)
    refuse_debug_build(arguments.allow_debug_build)
    from engine.experiment.host import HostMeter
    from engine.experiment.measure import Rig
    from engine.experiment.record import failures, make_record

    with Rig(setup) as rig:
        meter = HostMeter()
        part = rig.run()
        record = make_record(setup, [part], meter.load())
    if arguments.output == "json":
        import json

        json.dump(record, sys.stdout, indent=2, default=str)
        print()
    else:
        from engine.cli.bench_table import bench_lines

        print("\n".join(bench_lines(record)))
    for line in failures(record):
        print(f"engine: {line}", file=sys.stderr)
    if part["partial"]:
        print("engine: stopped by Ctrl-C; the figures are of the part that ran", file=sys.stderr)
        return 130
    return 1 if failures(record) else 0


def refuse_debug_build(allowed: bool) -> None:
    """Figures of a debug build mean nothing, and someone will quote them."""
    import engine

    build = engine.build_info()
    if allowed or (build.optimised and not build.sanitized):
        return
    kind = "a sanitized build" if build.sanitized else "a debug build"
    raise UserError(
        f"this is {kind} ({build.flags}): its figures mean nothing; "
        "install one with -Dbuildtype=release, or use --allow-debug-build"
    )


# ---- arguments to Setup ----


def make_setup(arguments: Namespace) -> Setup:
    contexts, generators = _contexts(arguments)
    nodes = _nodes(arguments)
    names = tuple(context.name for context in contexts)
    total = arguments.queues or len(names)
    served = tuple(names[index % len(names)] for index in range(total))
    writes = arguments.rw not in ("read", "randread")
    devices: list[DeviceSpec] = []
    workloads: list[WorkloadSpec] = []
    for name, node in nodes:
        queue = arguments.via == "queue"
        if queue:
            devices.append(
                DeviceSpec(node.name, node.name, served, arguments.queue_size, read_only=not writes)
            )
        workloads.append(
            WorkloadSpec(
                name,
                device=node.name if queue else None,
                node=None if queue else node.name,
                contexts=() if queue else served,
                generators=tuple(generator.name for generator in generators),
                rw=arguments.rw,
                rwmixread=arguments.rwmixread,
                bs=arguments.bs,
                iodepth=arguments.iodepth,
                runtime=0.0 if arguments.count else arguments.runtime or DEFAULT_RUNTIME,
                count=arguments.count or 0,
                rate_iops=arguments.rate_iops,
                seed=arguments.seed,
                latency=not arguments.no_latency,
                verify=arguments.verify,
            )
        )
    return Setup(
        EngineSpec(arguments.locking, arguments.lock_profile),
        (*contexts, *generators),
        tuple(node for _, node in nodes),
        tuple(devices),
        tuple(workloads),
        allow_holes=arguments.allow_holes,
    )


def _contexts(arguments: Namespace) -> tuple[list[ContextSpec], list[ContextSpec]]:
    """The contexts that serve, and those that only generate."""
    cpus: tuple[int, ...] | None = arguments.cpus
    number = arguments.contexts or (len(cpus) if cpus else 1)
    if cpus and len(cpus) > number:
        raise UsageError(f"--cpus names {len(cpus)} CPUs for {number} context{'s' * (number > 1)}: one each")
    poll, aio = arguments.poll_max_ns, arguments.aio
    contexts = [
        ContextSpec(f"io{index}", (cpus[index % len(cpus)],) if cpus else None, poll, aio)
        for index in range(number)
    ]
    generators = [
        ContextSpec(f"gen{index}", (cpu,), poll, aio)
        for index, cpu in enumerate(arguments.generator_cpus or ())
    ]
    return contexts, generators


def _nodes(arguments: Namespace) -> list[tuple[str, NodeSpec]]:
    """(name of the job, node) for each image."""
    read_only = arguments.rw in ("read", "randread")
    if arguments.null is not None:
        if arguments.images:
            raise UsageError("--null is a node of its own: leave out IMAGE")
        options: dict[str, Any] = {"driver": "null", "size": arguments.null}
        if arguments.null_latency:
            options["latency-ns"] = arguments.null_latency
        return [("null", NodeSpec("null", {**options, "node-name": "null"}))]
    if arguments.null_latency:
        raise UsageError("--null-latency goes with --null SIZE")
    if not arguments.images:
        raise UsageError("needs an IMAGE, or --null SIZE")
    nodes = []
    for index, image in enumerate(arguments.images):
        name = f"disk{index}"
        parsed = parse_image_opts(image) if arguments.image_opts else None
        options = parsed or _file_options(arguments.format, image)
        options.setdefault("node-name", name)
        if "read-only" not in options:
            options["read-only"] = read_only
        if arguments.direct:
            options["cache.direct" if options["driver"] == "file" else "file.cache.direct"] = True
        nodes.append((options.get("file.filename", options.get("filename", name)), NodeSpec(name, options)))
    if len({name for name, _ in nodes}) < len(nodes):
        raise UsageError("names one image twice")
    return nodes


def _file_options(driver: str, image: str) -> dict[str, Any]:
    """A plain file name, whatever is in it, below the format that was named."""
    if driver == "file":
        return {"driver": "file", "filename": image}
    return {"driver": driver, "file.driver": "file", "file.filename": image}


def parse_image_opts(text: str) -> dict[str, Any]:
    """`key=value,key=value`; a comma within a value is written twice."""
    options: dict[str, Any] = {}
    for part in text.replace(",,", "\0").split(","):
        key, equals, value = part.replace("\0", ",").partition("=")
        if not equals or not key:
            raise UsageError(f"--image-opts: {part!r} is not key=value")
        if key in options:
            raise UsageError(f"--image-opts: {key} is given twice")
        options[key] = value
    if "driver" not in options:
        raise UsageError(f"--image-opts: {text!r} names no driver; a format is never guessed")
    return options
