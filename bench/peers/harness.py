"""Side by side: a subject and its peers in turns, ratios with their spread, an A/A pair beside them.

A round runs the subject, each peer, and the subject again: subject ÷ peer is that round's ratio, second
÷ first run of the subject is the A/A ratio, which shows what the machine itself does to a figure. A
round in which the hypervisor took more than 2 % of the CPU time is discarded, marked, and run again.
Single-threaded.
"""

from __future__ import annotations

import datetime
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
STEAL_LIMIT_PERCENT = 2.0
RUN_LIMIT_S = 300


class BenchError(Exception):
    """Why there is no figure; one line."""


@dataclass(frozen=True)
class Figures:
    """What a program says of its own run. `details` is kept in the JSON and judged by nobody."""

    rate: float  # requests (or events) a second
    requests: int
    latency_ns: float | None = None  # mean
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """A program that is measured: one command, or several started at once whose rates add up."""

    name: str
    version: str
    commands: tuple[tuple[str, ...], ...]
    read: Callable[[str], Figures]  # from the standard output of one command
    startup: tuple[str, ...] = ()  # the same program with next to no requests: its CPU time is taken off
    path: str = ""  # what a request goes through


@dataclass(frozen=True)
class Peer:
    """A side to compare with, and the ratio that is asked for; None: no mark, shown for the record."""

    side: Side
    at_least: float | None = None
    at_most: float | None = None
    latency: bool = False  # the ratio of mean latencies is shown and judged by the same marks, too
    percentiles: tuple[float, ...] = ()  # ratios of these latencies are shown, and judged …
    percentiles_within: float = 0.1  # … to lie so near to 1


@dataclass(frozen=True)
class Derived:
    """What each round yields from the rates of its sides, or another figure of theirs, by their names."""

    name: str
    unit: str
    of: Callable[[Mapping[str, float]], float]
    at_least: float | None = None
    at_most: float | None = None
    figure: str = "rate"  # of each Run


@dataclass(frozen=True)
class Comparison:
    title: str
    subject: Side
    peers: tuple[Peer, ...]
    note: str = ""
    derived: tuple[Derived, ...] = ()
    rate_at_least: float | None = None  # absolute marks, for what has no peer
    latency_ns_at_most: float | None = None
    prepare: Callable[[], None] = lambda: None  # before each round


@dataclass(frozen=True)
class Settings:
    pairs: int = 9
    seconds: float = 3.0
    quick: bool = False

    @classmethod
    def make(cls, pairs: int | None, quick: bool) -> Settings:
        return cls(pairs or (1 if quick else 9), 0.3 if quick else 3.0, quick)

    def count(self, full: int) -> int:
        """Requests of a program that has no time limit of its own."""
        return max(1, full // 10) if self.quick else full


Suite = Mapping[str, Callable[[Settings], Comparison]]


@dataclass(frozen=True)
class Run:
    side: str
    rate: float
    requests: int
    latency_ns: float | None
    cpu_us_per_request: float
    cpu_seconds: float  # user and system of all its threads and processes, start-up included
    wall_seconds: float
    steal_percent: float
    details: dict[str, Any]

    @property
    def disturbed(self) -> bool:
        return self.steal_percent > STEAL_LIMIT_PERCENT


# ---- one run ----


def cpu_ticks() -> tuple[float, float]:
    """(steal, all) CPU seconds of the machine so far."""
    times = psutil.cpu_times()
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # counted in user, too
    return float(getattr(times, "steal", 0.0)), float(sum(times)) - guest


def start_all(commands: Sequence[Sequence[str]]) -> list[tuple[subprocess.Popen[str], Any, Any]]:
    started = []
    for command in commands:
        out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "LC_ALL": "C"},
                text=True,
            )
        except OSError as error:
            raise BenchError(f"{command[0]}: does not start: {error.strerror}") from error
        started.append((process, out, err))
    return started


def finish(process: subprocess.Popen[str], out: Any, err: Any) -> tuple[str, float]:
    """(standard output, CPU seconds of it and of the children that it waited for)."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    texts = []
    for stream in (out, err):
        stream.seek(0)
        texts.append(stream.read())
        stream.close()
    if process.returncode != 0:
        words = process.args if isinstance(process.args, list | tuple) else [process.args]
        reason = (texts[1].strip() or texts[0].strip() or "no message").splitlines()[-1]
        raise BenchError(f"{' '.join(map(str, words))}: exit status {process.returncode}: {reason}")
    return texts[0], usage.ru_utime + usage.ru_stime


def execute(commands: Sequence[Sequence[str]]) -> tuple[list[str], float]:
    """Starts all at once and waits for all: (their outputs, CPU seconds of all)."""
    started = start_all(commands)

    def expired(_signal: int, _frame: object) -> None:
        raise BenchError(f"{' '.join(commands[0])}: not over after {RUN_LIMIT_S} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(RUN_LIMIT_S)
    try:
        results = [finish(*each) for each in started]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        for process, *_ in started:
            if process.returncode is None:
                process.kill()
                process.wait()
    return [output for output, _ in results], sum(cpu for _, cpu in results)


def startup_cpu(side: Side) -> float:
    """CPU seconds that the program takes before and after its requests: the least of three."""
    if not side.startup:
        return 0.0
    return min(execute([side.startup])[1] for _ in range(3)) * len(side.commands)


def run_once(side: Side, startup: float) -> Run:
    steal, total = cpu_ticks()
    began = time.monotonic()
    outputs, cpu = execute(side.commands)
    wall = time.monotonic() - began
    steal_after, total_after = cpu_ticks()
    try:
        figures = [side.read(output) for output in outputs]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        text = f"{side.name}: its output is not understood: {error!r}: {outputs[0][-200:]!r}"
        raise BenchError(text) from error
    requests = sum(each.requests for each in figures)
    if requests <= 0:
        raise BenchError(f"{side.name}: no request completed")
    latencies = [each.latency_ns for each in figures if each.latency_ns is not None]
    elapsed = total_after - total
    return Run(
        side=side.name,
        rate=sum(each.rate for each in figures),
        requests=requests,
        latency_ns=statistics.fmean(latencies) if latencies else None,
        cpu_us_per_request=1e6 * max(cpu - startup, 0.0) / requests,
        cpu_seconds=cpu,
        wall_seconds=wall,
        steal_percent=100.0 * (steal_after - steal) / elapsed if elapsed > 0 else 0.0,
        details=figures[0].details
        if len(figures) == 1
        else {"processes": [each.details for each in figures]},
    )


# ---- rounds ----


@dataclass(frozen=True)
class Round:
    subject: Run
    peers: tuple[Run, ...]
    again: Run

    @property
    def runs(self) -> tuple[Run, ...]:
        return (self.subject, *self.peers, self.again)

    @property
    def disturbed(self) -> bool:
        return any(run.disturbed for run in self.runs)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


@dataclass
class Outcome:
    """All rounds of a comparison. Ratios leave out the discarded rounds; the JSON has them, marked."""

    comparison: Comparison
    kept: list[Round]
    discarded: list[Round]
    startup: dict[str, float]

    def ratios(self, index: int) -> dict[str, float]:
        return spread([r.subject.rate / r.peers[index].rate for r in self.kept])

    def latency_ratios(self, index: int) -> dict[str, float] | None:
        pairs = [(r.subject.latency_ns, r.peers[index].latency_ns) for r in self.kept]
        values = [a / b for a, b in pairs if a is not None and b]
        return spread(values) if values else None

    def percentile_ratios(self, index: int, percentile: float) -> dict[str, float] | None:
        """Of the first direction of each side."""
        key = f"{percentile:.6f}"

        def of(run: Run) -> float | None:
            directions: list[dict[str, float]] = run.details.get("percentiles_ns", [])
            return directions[0].get(key) if directions else None

        pairs = [(of(r.subject), of(r.peers[index])) for r in self.kept]
        values = [a / b for a, b in pairs if a is not None and b]
        return spread(values) if values else None

    def derived(self, figure: Derived) -> dict[str, float]:
        def value(run: Run) -> float:
            return float(getattr(run, figure.figure))

        return spread([figure.of({run.side: value(run) for run in (r.subject, *r.peers)}) for r in self.kept])

    def same_ratios(self) -> dict[str, float]:
        return spread([r.again.rate / r.subject.rate for r in self.kept])

    def latencies(self) -> dict[str, float] | None:
        values = [r.subject.latency_ns for r in self.kept if r.subject.latency_ns is not None]
        return spread(values) if values else None

    def marks(self) -> list[tuple[str, bool]]:
        """(what is asked, whether the median meets it)."""
        found = []
        for index, peer in enumerate(self.comparison.peers):
            median = self.ratios(index)["median"]
            if peer.at_least is not None:
                found.append((f"{peer.at_least:g} x {peer.side.name} or more", median >= peer.at_least))
            if peer.at_most is not None:
                found.append((f"{peer.at_most:g} x {peer.side.name} or less", median <= peer.at_most))
            latency = self.latency_ratios(index) if peer.latency else None
            if latency is not None and peer.at_least is not None:  # within so much of it, either way
                low, high = peer.at_least, 2 - peer.at_least
                asked = f"latency {low:g} to {high:g} x {peer.side.name}"
                found.append((asked, low <= latency["median"] <= high))
            for percentile in peer.percentiles:
                ratio, within = self.percentile_ratios(index, percentile), peer.percentiles_within
                if ratio is not None:
                    asked = f"p{percentile:g} {1 - within:g} to {1 + within:g} x {peer.side.name}"
                    found.append((asked, abs(ratio["median"] - 1) <= within))
        for figure in self.comparison.derived:
            median = self.derived(figure)["median"]
            if figure.at_least is not None:
                found.append(
                    (f"{figure.name} {figure.at_least:g} {figure.unit} or more", median >= figure.at_least)
                )
            if figure.at_most is not None:
                found.append(
                    (f"{figure.name} {figure.at_most:g} {figure.unit} or less", median <= figure.at_most)
                )
        rate, latency_limit = self.comparison.rate_at_least, self.comparison.latency_ns_at_most
        if rate is not None:
            median = statistics.median(r.subject.rate for r in self.kept)
            found.append((f"{rate / 1e6:g} M/s or more", median >= rate))
        latencies = self.latencies()
        if latency_limit is not None and latencies is not None:
            found.append((f"{latency_limit:g} ns or less", latencies["median"] <= latency_limit))
        return found

    def to_json(self) -> dict[str, Any]:
        comparison = self.comparison
        sides = [comparison.subject, *(peer.side for peer in comparison.peers)]
        return {
            "title": comparison.title,
            "note": comparison.note,
            "host": host(),
            "commit": commit_name(),
            "sides": [
                {
                    "name": side.name,
                    "version": side.version,
                    "commands": [" ".join(command) for command in side.commands],
                    "path": side.path,
                    "startup_cpu_seconds": self.startup[side.name],
                }
                for side in sides
            ],
            "ratios": [
                {
                    "peer": peer.side.name,
                    "rate": self.ratios(index),
                    "latency": self.latency_ratios(index),
                    "percentiles": {f"{p:g}": self.percentile_ratios(index, p) for p in peer.percentiles},
                    "at_least": peer.at_least,
                    "at_most": peer.at_most,
                }
                for index, peer in enumerate(comparison.peers)
            ],
            "derived": [
                {"name": figure.name, "unit": figure.unit, "value": self.derived(figure)}
                for figure in comparison.derived
            ],
            "same_against_same": self.same_ratios(),
            "marks": [{"asked": asked, "met": met} for asked, met in self.marks()],
            "rounds": [
                {"discarded": discarded, "runs": [asdict(run) for run in each.runs]}
                for discarded, rounds in ((False, self.kept), (True, self.discarded))
                for each in rounds
            ],
            "steal_limit_percent": STEAL_LIMIT_PERCENT,
        }


def compare(
    comparison: Comparison, settings: Settings, progress: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Runs the rounds; BenchError where a program fails, or where steal spoils too many rounds."""
    sides = [comparison.subject, *(peer.side for peer in comparison.peers)]
    startup = {side.name: startup_cpu(side) for side in sides}
    kept: list[Round] = []
    discarded: list[Round] = []
    while len(kept) < settings.pairs:
        comparison.prepare()
        runs = [run_once(side, startup[side.name]) for side in (*sides, comparison.subject)]
        done = Round(runs[0], tuple(runs[1:-1]), runs[-1])
        # A quick run is too short for the kernel's clock ticks to tell 2 %, and is not quoted anyway.
        spoilt = done.disturbed and not settings.quick
        (discarded if spoilt else kept).append(done)
        progress(f"round {len(kept)} of {settings.pairs}{', one discarded for steal' if spoilt else ''}")
        if len(discarded) > 2 * settings.pairs:
            raise BenchError(
                f"{comparison.title}: {len(discarded)} rounds had more than {STEAL_LIMIT_PERCENT} % steal"
            )
    return Outcome(comparison, kept, discarded, startup)


# ---- reports ----


def rate_text(value: float) -> str:
    return f"{value / 1e6:.2f} M/s" if value >= 1e6 else f"{value / 1e3:.1f} k/s"


def describe(outcome: Outcome) -> list[str]:
    """For people: figures first, then what was compared, word for word."""
    comparison = outcome.comparison
    lines = [comparison.title]
    columns = [(comparison.subject, [r.subject for r in outcome.kept])]
    columns += [(p.side, [r.peers[i] for r in outcome.kept]) for i, p in enumerate(comparison.peers)]
    for side, runs in columns:
        rates = spread([run.rate for run in runs])
        cpu = statistics.median(run.cpu_us_per_request for run in runs)
        text = f"  {side.name:<34} {rate_text(rates['median']):>11}"
        text += f"  ({rate_text(rates['min'])} to {rate_text(rates['max'])})  CPU {cpu:.3f} µs/request"
        latencies = [run.latency_ns for run in runs if run.latency_ns is not None]
        if latencies:
            text += f"  mean latency {statistics.median(latencies) / 1000:.2f} µs"
        lines.append(text)

    def triple(values: dict[str, float]) -> str:
        return f"{values['min']:.3f} / {values['median']:.3f} / {values['max']:.3f}"

    for index, peer in enumerate(comparison.peers):
        lines.append(f"  ratio to {peer.side.name:<25} {triple(outcome.ratios(index))}  (min / median / max)")
        latency = outcome.latency_ratios(index) if peer.latency else None
        if latency is not None:
            lines.append(f"  latency to {peer.side.name:<23} {triple(latency)}")
        for percentile in peer.percentiles:
            ratios = outcome.percentile_ratios(index, percentile)
            if ratios is not None:
                lines.append(f"  {f'p{percentile:g} to {peer.side.name}':<34} {triple(ratios)}")
    lines += [
        f"  {figure.name:<34} {triple(outcome.derived(figure))} {figure.unit}"
        for figure in comparison.derived
    ]
    lines.append(f"  {'A/A: subject to itself':<34} {triple(outcome.same_ratios())}")
    steal = max(run.steal_percent for r in outcome.kept for run in r.runs)
    lines.append(
        f"  pairs {len(outcome.kept)}, discarded for steal {len(outcome.discarded)}, most steal {steal:.1f} %"
    )
    lines += [f"  {'meets' if met else 'MISSES'}: {asked}" for asked, met in outcome.marks()]
    for side, runs in columns:
        lines.append(f"    {side.name} = {side.version}{': ' + side.path if side.path else ''}")
        lines += [f"      {context_text(context)}" for context in contexts_of(runs[0])]
        lines += [f"      $ {' '.join(command)}" for command in side.commands]
    if comparison.note:
        lines.append(f"    note: {comparison.note}")
    return lines


def contexts_of(run: Run) -> list[dict[str, Any]]:
    """Those of the engine, in all its processes; none for other programs."""
    parts = run.details.get("processes", [run.details])
    return [context for part in parts for context in part.get("contexts", [])]


def context_text(context: dict[str, Any]) -> str:
    """Where it really ran, and how it waits: polling must not be mistaken for speed."""
    cpus = ",".join(map(str, context["effective_cpus"]))
    calls = context["system_calls_per_operation"]
    text = (
        f"context {context['name']}: CPU {cpus}, {context['backend']}, poll_max_ns {context['poll_max_ns']}"
    )
    return text + (f", {calls} system calls an operation" if calls is not None else "")


def host() -> dict[str, Any]:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in read_lines("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "load": list(os.getloadavg()),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def commit_name() -> str:
    """The commit of this checkout, shortened; `-dirty` where the tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--match="]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "no-commit"


def main(suite: Suite, description: str) -> int:
    """The command line of a suite: prints each comparison, keeps all in a JSON file."""
    import argparse
    import json

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (all): {', '.join(suite)}")
    parser.add_argument("--pairs", type=int, metavar="N", help="alternating pairs (9)")
    parser.add_argument(
        "--quick", action="store_true", help="one short pair: to see that it works, not to quote"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="where the runs are kept (bench/results/SUITE-COMMIT.json)"
    )
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in suite]:
        parser.error(f"no comparison is called {unknown[0]}")
    settings = Settings.make(arguments.pairs, arguments.quick)
    output = Path(
        arguments.json or ROOT / "bench" / "results" / f"{Path(sys.argv[0]).stem}-{commit_name()}.json"
    )
    results: dict[str, Any] = {}
    status = 0
    for name in arguments.names or list(suite):
        try:
            outcome = compare(
                suite[name](settings), settings, lambda text: print(f"\r{text} ", end="", file=sys.stderr)
            )
        except BenchError as error:
            print(f"{Path(sys.argv[0]).name}: {name}: {error}", file=sys.stderr)
            status = 1
            continue
        print(file=sys.stderr)
        print("\n".join(describe(outcome)), flush=True)
        results[name] = outcome.to_json()
    if results:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return status
