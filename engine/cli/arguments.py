"""The command line of every command. Imports nothing heavy: commands are imported when they run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from engine.experiment.schema import BACKENDS, LOCKINGS, PATTERNS


class _Parser(argparse.ArgumentParser):
    """Usage errors on one line, as all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"engine: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import engine

        print(f"engine {engine.__version__}")
        parser.exit()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses; `command` of the result is what to call. Exits with status 2 on wrong usage."""
    parser = _Parser(
        prog="engine",
        description="A block I/O engine in which one can see where each microsecond and each lock wait went.",
        epilog="Sizes: 4k, 1G, 64KiB. Times: 20us, 200ms, 5s. Each command has its own --help.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    embed = parser.add_argument_group("for C programs that embed the engine")
    embed.add_argument("--cflags", action="store_true", help="print what the compiler needs, and exit")
    embed.add_argument("--libs", action="store_true", help="print what the linker needs, and exit")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    _bench(commands.add_parser("bench", help="one workload on one topology", allow_abbrev=False))
    _run(commands.add_parser("run", help="an experiment file: swept, repeated, with a picture"))
    _report(commands.add_parser("report", help="a result as one HTML page, with pictures"))
    _compare(commands.add_parser("compare", help="what differs between two results, beyond noise"))
    _doctor(commands.add_parser("doctor", help="what this host gives, and what to do about it"))
    _write_log(commands.add_parser("write-log", help="what a write log holds, and the disk that it makes"))
    arguments = parser.parse_args(argv)
    if arguments.cflags or arguments.libs:
        arguments.command = _run_flags
    elif "command" not in arguments:
        parser.error("the following arguments are required: COMMAND")
    return arguments


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs one workload on one or more images, or on no image at all (--null)."
    parser.set_defaults(command=_run_bench)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files; each gets its own device")
    _bench_graph(parser)
    _bench_load(parser)
    _bench_topology(parser)
    _bench_output(parser)


def _bench_graph(parser: argparse.ArgumentParser) -> None:
    graph = parser.add_argument_group("what is measured")
    graph.add_argument("--format", default="raw", metavar="NAME", help="of the images; never guessed (raw)")
    graph.add_argument(
        "--image-opts",
        action="store_true",
        help="IMAGE is a list of node options: driver=raw,file.driver=file,file.filename=a.img",
    )
    graph.add_argument("--null", type=_size, metavar="SIZE", help="a null node of this size: no disk")
    graph.add_argument(
        "--null-latency", type=_time_ns, default=0, metavar="TIME", help="of the null node (0)"
    )
    graph.add_argument(
        "--via", choices=("queue", "node"), default="queue", help="a virtqueue, or the node itself"
    )
    cache = graph.add_mutually_exclusive_group()
    cache.add_argument("--direct", action="store_true", help="O_DIRECT")
    cache.add_argument("--buffered", action="store_true", help="through the page cache (default)")
    graph.add_argument("--allow-holes", action="store_true", help="measure images with holes all the same")


def _bench_load(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("workload")
    load.add_argument("--rw", choices=PATTERNS, default="randread", help="pattern (randread)")
    load.add_argument(
        "--rwmixread", type=_number(0, 100), default=50, metavar="N", help="reads of rw, randrw, in %% (50)"
    )
    load.add_argument("--bs", type=_size, default=4096, metavar="SIZE", help="bytes of a request (4k)")
    load.add_argument(
        "--iodepth", type=_number(1), default=64, metavar="N", help="requests in flight, per queue (64)"
    )
    end = load.add_mutually_exclusive_group()
    end.add_argument("--runtime", type=_seconds, metavar="TIME", help="how long (5s)")
    end.add_argument("--count", type=_number(1), metavar="N", help="how many requests, in all")
    load.add_argument(
        "--rate-iops",
        type=_number(1),
        default=0,
        metavar="N",
        help="open loop: start so many a second, in all",
    )
    load.add_argument("--seed", type=_number(0), default=1, metavar="N", help="of offsets and data (1)")
    load.add_argument(
        "--verify", action="store_true", help="writes carry a pattern, reads of them are checked"
    )
    load.add_argument("--no-latency", action="store_true", help="take no time stamps")


def _bench_topology(parser: argparse.ArgumentParser) -> None:
    place = parser.add_argument_group("topology")
    place.add_argument(
        "--contexts", type=_number(1, 256), metavar="N", help="event loops (one for each CPU named, else 1)"
    )
    place.add_argument(
        "--cpus", type=_cpus, metavar="LIST", help="CPUs dealt to the contexts in order: 0,2-3"
    )
    place.add_argument(
        "--queues",
        type=_number(1, 256),
        metavar="N",
        help="virtqueues in all, dealt round robin (one a context)",
    )
    place.add_argument(
        "--queue-size", type=_number(1, 32768), default=256, metavar="N", help="descriptors of a queue (256)"
    )
    place.add_argument(
        "--generator-cpus", type=_cpus, metavar="LIST", help="generate on these CPUs, not on the queue's own"
    )
    place.add_argument("--aio", choices=BACKENDS, default="auto", help="how a context does its I/O (auto)")
    place.add_argument(
        "--locking", choices=LOCKINGS, default="per-node", help="locks of each node, or one for the engine"
    )
    place.add_argument(
        "--lock-profile", action="store_true", help="histograms of wait and hold for each lock"
    )
    place.add_argument(
        "--poll-max-ns", type=_number(0), metavar="N", help="longest busy poll before sleeping; 0: never"
    )


def _bench_output(parser: argparse.ArgumentParser) -> None:
    out = parser.add_argument_group("output")
    out.add_argument(
        "--output", choices=("table", "json"), default="table", help="json has the layout of fio's"
    )
    out.add_argument(
        "--allow-debug-build", action="store_true", help="measure a debug or sanitized build all the same"
    )


def _run(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs every point of an experiment file, repetitions interleaved, and draws the picture."
    )
    parser.set_defaults(command=_run_run)
    parser.add_argument("experiment", metavar="EXPERIMENT.toml")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder of the result (results/NAME-TIME)")
    parser.add_argument("--repeat", type=_number(1), metavar="N", help="repetitions, instead of the file's")
    parser.add_argument(
        "--quick", action="store_true", help="one short repetition: to see that all works, not to quote"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the result in DIR")
    parser.add_argument(
        "--progress-fd",
        type=_number(0),
        metavar="N",
        help="one JSON record a line for each run, to descriptor N",
    )
    parser.add_argument("--plan", action="store_true", help="print the plan and run nothing")
    parser.add_argument(
        "--allow-debug-build", action="store_true", help="measure a debug or sanitized build all the same"
    )


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Says what this host gives to a block I/O engine, and what to do where it falls short."
    )
    parser.set_defaults(command=_run_doctor)
    parser.add_argument("--json", action="store_true", help="for programs")
    suggest = parser.add_argument_group(
        "suggesting", "Measures, for some seconds, what an image wants, and prints it as an experiment file."
    )
    suggest.add_argument(
        "--suggest", action="store_true", help="contexts, CPUs and polling for IMAGE, which is only read"
    )
    suggest.add_argument("image", nargs="?", metavar="IMAGE")
    suggest.add_argument("--format", default="raw", metavar="NAME", help="of the image; never guessed (raw)")
    suggest.add_argument("--null", type=_size, metavar="SIZE", help="a null node of this size: no disk")
    suggest.add_argument(
        "--buffered", action="store_true", help="through the page cache, instead of O_DIRECT"
    )
    suggest.add_argument(
        "--runtime", type=_seconds, default=0.25, metavar="TIME", help="of each measurement (250ms)"
    )
    suggest.add_argument(
        "--allow-holes", action="store_true", help="measure an image with holes all the same"
    )
    suggest.add_argument(
        "--allow-debug-build", action="store_true", help="measure a debug or sanitized build all the same"
    )


_NEEDS_RESVG = 'needs resvg-py: pip install "blkengine[png]"'


def _report(parser: argparse.ArgumentParser) -> None:
    parser.description = "Makes one HTML page of a result of `engine run`, which needs nothing else."
    parser.set_defaults(command=_run_report)
    parser.add_argument("result", metavar="RESULT", help="a result, or its folder")
    parser.add_argument("-o", "--output", metavar="FILE", help="the page (report.html beside the result)")
    parser.add_argument("--svg", metavar="DIR", help="also each picture by itself, there")
    parser.add_argument("--png", metavar="DIR", help=f"the same as PNG; {_NEEDS_RESVG}")
    parser.add_argument(
        "--perfetto", metavar="FILE", help="also the traces, for ui.perfetto.dev (experiments with run.trace)"
    )
    parser.add_argument("--point", type=_number(0), metavar="N", help="the traces of this point, from 0")


def _run_report(arguments: argparse.Namespace) -> int:
    from engine.cli.report import run

    return run(arguments)


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Says what differs between two results of `engine run`, point by point, beyond the noise of their "
        "runs: in words, and as a picture with each run and the interval of the ratio of medians."
    )
    parser.set_defaults(command=_run_compare)
    parser.add_argument("a", metavar="A", help="a result, or its folder: what was")
    parser.add_argument("b", metavar="B", help="what is now")
    parser.add_argument(
        "--fail-if-slower",
        type=_share,
        metavar="N%",
        help="exit status 1 where B is slower than A by so much, beyond noise",
    )
    parser.add_argument("--html", metavar="FILE", help="also as a page: picture, table, hosts, experiments")
    parser.add_argument("--svg", metavar="FILE", help="also the picture by itself")
    parser.add_argument("--png", metavar="FILE", help=f"the same as PNG; {_NEEDS_RESVG}")


def _run_compare(arguments: argparse.Namespace) -> int:
    from engine.cli.compare import run

    return run(arguments)


def _write_log(parser: argparse.ArgumentParser) -> None:
    parser.description = "Logs of `write-log` nodes (docs/write-log.md)."
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    show = actions.add_parser("show", help="one line for each entry")
    show.set_defaults(command=_run_write_log_show)
    show.add_argument("log", metavar="LOG")
    show.add_argument("--json", action="store_true", help="one JSON object for each entry")
    replay = actions.add_parser("replay", help="do it all again on an image")
    replay.set_defaults(command=_run_write_log_replay)
    replay.add_argument("log", metavar="LOG")
    replay.add_argument(
        "image", metavar="IMAGE", help="as the disk was when the log was begun; a new one is zeroes"
    )
    replay.add_argument("--to", type=_number(0), metavar="N", help="the first N entries only")
    replay.add_argument("--flush", type=_number(1), metavar="K", help="up to the K-th flush")
    replay.add_argument(
        "--power-loss",
        type=_number(0),
        metavar="SEED",
        help="lose, tear and reorder what no flush has made durable by then",
    )


def _run_write_log_show(arguments: argparse.Namespace) -> int:
    from engine.cli.write_log import show

    return show(arguments)


def _run_write_log_replay(arguments: argparse.Namespace) -> int:
    from engine.cli.write_log import make

    return make(arguments)


def _run_flags(arguments: argparse.Namespace) -> int:
    from engine.embed import print_flags

    return print_flags(arguments.cflags, arguments.libs)


def _run_bench(arguments: argparse.Namespace) -> int:
    from engine.cli.bench import bench

    return bench(arguments)


def _run_run(arguments: argparse.Namespace) -> int:
    from engine.cli.run import run

    return run(arguments)


def _run_doctor(arguments: argparse.Namespace) -> int:
    from engine.experiment.errors import UsageError

    if arguments.suggest:
        if arguments.json:
            raise UsageError("--suggest prints TOML: leave out --json")
        from engine.suggest import command

        return command(arguments)
    if arguments.image or arguments.null is not None:
        raise UsageError("IMAGE and --null go with --suggest")
    from engine.doctor import doctor

    return doctor(arguments.json)


# ---- values ----


def _number(low: int, high: int | None = None) -> Callable[[str], int]:
    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            limits = f"at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"must be {limits}, not {value}")
        return value

    return number


def _size(text: str) -> int:
    from engine.units import parse_size

    try:
        return parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4k or 1G") from None


def _time_ns(text: str) -> int:
    from engine.units import parse_time_ns

    try:
        return parse_time_ns(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 20us or 5s") from None


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not text.endswith("%") or not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 5%")
    return value


def _seconds(text: str) -> float:
    nanoseconds = _time_ns(text)
    if nanoseconds <= 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return nanoseconds / 1e9


def _cpus(text: str) -> tuple[int, ...]:
    from engine.experiment.host import parse_cpu_list

    try:
        return tuple(parse_cpu_list(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of CPUs such as 0,2-3") from None
