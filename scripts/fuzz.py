"""Runs the fuzzers of tests/fuzz with libFuzzer, the canary first: one that is not found fails the run.

Each gets --time, or --runs, two at a time; with --time their corpora are kept in build/fuzz/corpus/NAME. The
seeds are printed, fresh from the clock unless --seed says otherwise. A failure is one line, with the command
that repeats it. The last line is `N fuzzers, F failed, canary found`, and the exit status says the same. Each
fuzzer is a process; a thread for each of two jobs reads its output, and nothing else is shared.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from run_tests import BUILD, JOBS, PCH, ROOT, SANITIZED, UNIFIED, clang, clang_tool, configure, run

FOLDER = BUILD / "fuzz"
CANARY = "canary"
CANARY_SECONDS = 30.0
CANARY_FINDING = "AddressSanitizer: heap-buffer-overflow"
INPUT_BYTES_MAX = 1024
INPUT_SECONDS_MAX = 25  # one input that takes longer hangs


@dataclass
class Outcome:
    """What became of one fuzzer. Times are seconds from its start."""

    name: str
    status: int = 0
    executions: int = 0
    edges: int = 0
    last_edge_at: float = 0.0
    last_edge_execution: int = 0
    seconds: float = 0.0
    finding: str = ""
    crash: str = ""


def fuzzers() -> dict[str, str]:
    """Name and what it covers, as the table in tests/fuzz/meson.build has it."""
    table = (ROOT / "tests" / "fuzz" / "meson.build").read_text(encoding="utf-8")
    return dict(re.findall(r"^  '(\w+)': '(.*)',$", table, re.MULTILINE))


def build() -> bool:
    """A folder of its own: nothing else is compiled for libFuzzer."""
    options = (
        "-Dnative_tests=false",
        "-Dfuzzers=true",
        "-Db_sanitize=address,undefined",
        *SANITIZED,
        *PCH,
        *UNIFIED,
    )
    return (
        configure(FOLDER, clang(), *options)
        and run("ninja", "-C", FOLDER, f"-j{JOBS}", "--quiet", "fuzzers")[0] == 0
    )


def program(name: str) -> Path:
    return FOLDER / "tests" / "fuzz" / f"fuzz_{name}"


def seconds(text: str) -> float:
    """`90`, `90s`, `5m`, `1h`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no time such as 60s, 5m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2] or "s"]


def read_output(outcome: Outcome, lines: Iterable[str], log: Path) -> None:
    """Keeps the output, and of it what an outcome has."""
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line)
            if match := re.match(r"#(\d+)\s.* cov: (\d+) ", line):
                outcome.executions = int(match[1])
                if int(match[2]) > outcome.edges:
                    outcome.edges = int(match[2])
                    outcome.last_edge_at = time.monotonic() - started
                    outcome.last_edge_execution = outcome.executions
            elif match := re.search(r"stat::number_of_executed_units: (\d+)", line):
                outcome.executions = int(match[1])
            elif match := re.search(r"Test unit written to (\S+)", line):
                outcome.crash = match[1]
            elif not outcome.finding and re.search(r"ERROR: |runtime error: |\.(?:cc|hh):\d+: ", line):
                outcome.finding = re.sub(r"^==\d+==\s*", "", line.strip())
    outcome.seconds = time.monotonic() - started


def fuzz(name: str, seed: int, limit: str, corpus: Path) -> Outcome:
    """One fuzzer until its limit, or its first finding."""
    crashes, logs = FOLDER / "crashes", FOLDER / "logs"
    for folder in (crashes, logs, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    seeds = ROOT / "tests" / "fuzz" / "seeds" / name
    command = [
        str(program(name)),
        f"-seed={seed}",
        limit,
        f"-max_len={INPUT_BYTES_MAX}",
        "-len_control=0",
        "-entropic=0",  # with thousands of edges an input its bookkeeping takes a third of the time
        f"-timeout={INPUT_SECONDS_MAX}",
        "-rss_limit_mb=3072",
        "-print_final_stats=1",
        "-print_funcs=0",
        f"-artifact_prefix={crashes}/{name}-",
        str(corpus),
        *([str(seeds)] if seeds.is_dir() else []),
    ]
    symbolizer = clang_tool("llvm-symbolizer") or shutil.which("llvm-symbolizer")
    env = {**os.environ, **({"ASAN_SYMBOLIZER_PATH": symbolizer} if symbolizer else {})}
    outcome = Outcome(name)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
    ) as process:
        assert process.stdout is not None
        read_output(outcome, process.stdout, logs / f"{name}.log")
    outcome.status = process.returncode
    return outcome


def canary_found(seed: int) -> bool:
    with tempfile.TemporaryDirectory() as corpus:
        outcome = fuzz(CANARY, seed, f"-max_total_time={CANARY_SECONDS:.0f}", Path(corpus))
    found = outcome.status != 0 and CANARY_FINDING in outcome.finding
    where = f"found after {outcome.executions} runs, {outcome.seconds:.1f} s" if found else "NOT FOUND"
    print(f"{CANARY:13} seed {seed}: {where}", flush=True)
    return found


def describe(outcome: Outcome, seed: int, covers: str) -> str:
    grown = (
        f"{outcome.executions} runs, {outcome.edges} edges, the last new one at "
        f"{outcome.last_edge_at:.0f} of {outcome.seconds:.0f} s (run {outcome.last_edge_execution})"
    )
    line = f"{outcome.name:13} seed {seed}: {grown}; {covers}"
    if outcome.status == 0:
        return line
    again = (
        f"{program(outcome.name)} {outcome.crash}"
        if outcome.crash
        else f"see {FOLDER}/logs/{outcome.name}.log"
    )
    return (
        f"{line}\n{outcome.name:13} FAILED: {outcome.finding or 'no output says why'}: repeat with: {again}"
    )


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--time", type=seconds, default=60.0, help="of each fuzzer: 60s, 5m (default: 60s)")
    limit.add_argument("--runs", type=int, help="of each fuzzer, from the seeds that are checked in alone")
    parser.add_argument("--seed", type=int, help="of all fuzzers (default: from the clock)")
    parser.add_argument("names", nargs="*", help="of fuzzers (default: all)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    given = parse_arguments(arguments)
    table = fuzzers()
    if unknown := [name for name in given.names if name not in table]:
        print(f"no fuzzer is called {unknown[0]}; there are {' '.join(table)}", file=sys.stderr)
        return 2
    seed = given.seed if given.seed is not None else time.time_ns() // 1000 % (2**32 - 1) + 1
    if not build():
        return 1
    found = canary_found(seed)
    names = [name for name in given.names or table if name != CANARY]
    limit = f"-runs={given.runs}" if given.runs else f"-max_total_time={given.time:.0f}"
    failed = 0
    with tempfile.TemporaryDirectory() as fresh, ThreadPoolExecutor(int(JOBS)) as jobs:
        corpora = Path(fresh) if given.runs else FOLDER / "corpus"
        for outcome in jobs.map(lambda name: fuzz(name, seed, limit, corpora / name), names):
            print(describe(outcome, seed, table[outcome.name]), flush=True)
            failed += outcome.status != 0
    print(f"{len(names)} fuzzers, {failed} failed, canary {'found' if found else 'NOT FOUND'}")
    return 0 if found and not failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
