#!/usr/bin/env python3
"""What the load generator itself costs at 1 M requests a second on one context: less than 10 % of its time.

At that rate a context has 1 µs for a request, whatever device is below. A closed loop over a null node goes
through generator, request layer and null driver: the CPU time of such a request is more than the generator
takes of it. Of the instructions of such a request (callgrind), those in the generator's own functions have a
share; that share of the CPU time is the generator's. An open loop at 1 M/s says whether the rate is kept, and
what a request costs in CPU time with and without polling: it wakes up for what falls due, which is the
context's work, and the generator's wish. Single-threaded.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from harness import BenchError, Comparison, Derived, Peer, Settings, main
from programs import engine_bench, micro_program

RATE = 1_000_000
DEPTH = 1024  # of the open loop: what falls due during 1 ms
OPEN, QUIET, CLOSED = f"open loop, {RATE / 1e6:g} M/s", "the same, without polling", "closed loop, depth 64"
GENERATOR = "engine::workload::"


@dataclass(frozen=True)
class Instructions:
    """Of one request: the generator's own (its callees are not in it), and all."""

    generator: float
    all: float


def counted(*arguments: str) -> tuple[int, int]:
    """(in the generator's functions, in all) of a whole run of bench/micro/run_requests."""
    folder = micro_program("run_requests").parent
    out = folder / "callgrind.out"
    commands = [
        [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={out}",
            str(folder / "run_requests"),
            *arguments,
        ],
        ["callgrind_annotate", "--threshold=100", str(out)],
    ]
    for command in commands:
        result = subprocess.run(
            command, env={**os.environ, "NO_IO_URING": "1"}, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise BenchError(f"{' '.join(command)}: {result.stderr.strip()[-200:]}")
    lines = re.findall(r"^ *([\d,]+) \([ \d.]+%\) +(\S.*)$", result.stdout, re.MULTILINE)
    numbers = [(int(number.replace(",", "")), name) for number, name in lines]
    total = next(number for number, name in numbers if name == "PROGRAM TOTALS")
    # A name begins after "file:"; what is called with a Ticket or a Generator is not the generator.
    own = sum(number for number, name in numbers if name.partition(":")[2].startswith(GENERATOR))
    return own, total


def instructions(count: int, *arguments: str) -> Instructions:
    """What so many more requests add, so that start and end are left out."""
    few, many = (counted(str(n * count), "node", "64", *arguments) for n in (1, 2))
    return Instructions((many[0] - few[0]) / count, (many[1] - few[1]) / count)


def at_a_million(settings: Settings) -> Comparison:
    common = ("--null", "1g", "--via", "node", "--rw", "randread", "--bs", "4k", "--cpus", "0")
    opened = (*common, "--iodepth", str(DEPTH), "--rate-iops", str(RATE))
    path = "load generator → request layer → null; latency on"
    subject = engine_bench(OPEN, settings, *opened, path=path)
    quiet = engine_bench(QUIET, settings, *opened, "--poll-max-ns", "0", path=path)
    closed = engine_bench(CLOSED, settings, *common, "--iodepth", "64", path=path)

    def whole_percent(cpu_us: Mapping[str, float]) -> float:
        return cpu_us[CLOSED] * RATE / 1e4

    cpu = "cpu_us_per_request"
    derived = [
        Derived("reached of the rate asked for", "%", lambda rates: 100 * rates[OPEN] / RATE, at_least=99),
        Derived("CPU of a whole request, of 1 µs", "%", whole_percent, figure=cpu),
    ]
    if shutil.which("callgrind_annotate") is None:
        note = "no valgrind: the generator's own part is not told apart"
    else:
        each, waking = instructions(20_000), instructions(1_000, "rate=2000")
        share = each.generator / each.all
        note = (
            f"instructions of a request (callgrind): generator {each.generator:.0f} of {each.all:.0f} in the "
            f"closed loop; {waking.generator:.0f} of {waking.all:.0f} where the open loop wakes up for each"
        )
        own = Derived(
            "CPU of the generator, of 1 µs", "%", lambda us: share * whole_percent(us), at_most=10, figure=cpu
        )
        derived.append(own)
    return Comparison(
        f"the load generator at {RATE / 1e6:g} M requests a second, one context, null node",
        subject,
        (Peer(quiet), Peer(closed)),
        note,
        tuple(derived),
    )


SUITE = {"million": at_a_million}

if __name__ == "__main__":
    sys.exit(main(SUITE, __doc__.splitlines()[0]))
