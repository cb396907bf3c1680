"""Runs the simulator: many seeds in two processes, or one with its history; then the known bugs, each of
which the seeds must find.

    sim.py --seeds 10000 [--from N] [--no-bugs]    ends with `N seeds, F failed, K/K known bugs found`
    sim.py --seed 123                              that seed, operation by operation
    sim.py --bug NAME [--seed 123]                 one known bug

Exit status 1 when a seed failed, a bug was not found, or an event was not reached in 5 % of the seeds.
A known bug (tests/sim/bugs.toml) is one source file with a piece of text replaced, compiled as its own object
and linked before the library's.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from run_tests import BUILD, GCC, PCH, ROOT, TOOLS, configure

FOLDER = BUILD / "native"
LAB = FOLDER / "tests" / "sim" / "lab"
JOBS = 2
SEEDS_AT_A_TIME = 250  # of one process
REACHED_IN = 0.05  # of the seeds, each event at least …
SEEDS_FOR_EVENTS = 400  # … where there are so many


@dataclass
class Tally:
    seeds: int = 0
    operations: int = 0
    virtual_ns: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    reached: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.seeds += other.seeds
        self.operations += other.operations
        self.virtual_ns += other.virtual_ns
        self.failures |= other.failures
        self.reached += other.reached


@dataclass(frozen=True)
class Bug:
    name: str
    text: str
    file: str
    old: str
    new: str
    seeds: int  # within so many it must be found


def known_bugs() -> list[Bug]:
    table = tomllib.loads((ROOT / "tests" / "sim" / "bugs.toml").read_text(encoding="utf-8"))
    return [Bug(**each) for each in table["bug"]]


# ---- seeds


def run_range(lab: Path, first: int, count: int) -> Tally:
    """Seeds first, first + 1, …; goes on after one that ended the process."""
    tally = Tally()
    at, end = first, first + count
    while at < end:
        command = [str(lab), "--from", str(at), "--count", str(end - at)]
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        begun = at - 1
        over = False
        for line in ran.stdout.splitlines():
            word, _, rest = line.partition(" ")
            if word == "begin":
                begun = int(rest)
            elif word == "failed":
                seed, _, text = rest.partition(" ")
                tally.failures[int(seed)] = text
            elif word == "done":
                seeds, _, operations, virtual_ns = map(int, rest.split())
                tally.add(Tally(seeds, operations, virtual_ns))
                over = True
            elif word == "reached":
                event, seeds_text = rest.split()
                tally.reached[event] += int(seeds_text)
        if over:
            break
        lines = ran.stderr.strip().splitlines()
        if begun < at:
            raise SystemExit(f"{lab} does not run: {lines[-1] if lines else ran.returncode}")
        said = lines[-1] if lines else "it hung" if ran.returncode == -14 else "it said nothing"
        tally.failures[begun] = f"the process ended ({ran.returncode}): {said}"
        tally.seeds += begun - at + 1
        at = begun + 1
    return tally


def run_seeds(lab: Path, first: int, count: int, told: Callable[[Tally], None]) -> Tally:
    total = Tally()
    ranges = [
        (at, min(SEEDS_AT_A_TIME, first + count - at)) for at in range(first, first + count, SEEDS_AT_A_TIME)
    ]
    with ThreadPoolExecutor(JOBS) as pool:
        for tally in pool.map(lambda each: run_range(lab, *each), ranges):
            total.add(tally)
            told(total)
    return total


# ---- known bugs


def commands_of(target: str) -> list[str]:
    ran = subprocess.run(
        [TOOLS / "ninja", "-C", FOLDER, "-t", "commands", target], capture_output=True, text=True, check=True
    )
    return ran.stdout.strip().splitlines()


class NotBuilt(Exception):
    """Of a known bug: why."""


def build_with(bug: Bug, folder: Path) -> Path:
    """The lab with the bug in it, or NotBuilt."""
    source = ROOT / bug.file
    text = source.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        raise NotBuilt(f"{bug.file} has its text {text.count(bug.old)} times, not once")
    changed = folder / source.name
    changed.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
    commands = json.loads((FOLDER / "compile_commands.json").read_text(encoding="utf-8"))
    command = next(
        each["command"]
        for each in commands
        if (Path(each["directory"]) / each["file"]).resolve() == source and "engine_objects" in each["output"]
    )
    words = shlex.split(command)
    words[words.index("-o") + 1] = str(folder / "bug.o")
    words[words.index("-c") + 1] = str(changed)
    words[words.index("-MF") + 1] = str(folder / "bug.d")
    words = [word for word in words if word != "-Werror"]  # what it leaves unused is no matter
    if subprocess.run(words, cwd=FOLDER, check=False).returncode:
        raise NotBuilt(f"{bug.file} does not compile with it")
    link = shlex.split(commands_of("tests/sim/lab")[-1])
    out = link.index("-o") + 1
    link[out] = str(folder / "lab")
    link.insert(out + 1, str(folder / "bug.o"))
    if subprocess.run(link, cwd=FOLDER, check=False).returncode:
        raise NotBuilt(f"the lab does not link with it in {bug.file}")
    return folder / "lab"


def find_bug(bug: Bug) -> tuple[Bug, int | None, str]:
    """The seed that found it and what that said, or why none did. They begin with 0, so that it is the same
    in every run."""
    with tempfile.TemporaryDirectory() as name:
        try:
            lab = build_with(bug, Path(name))
        except NotBuilt as problem:
            return bug, None, str(problem)
        step = 5
        for at in range(0, bug.seeds, step):
            tally = run_range(lab, at, min(step, bug.seeds - at))
            if tally.failures:
                seed = min(tally.failures)
                return bug, seed, tally.failures[seed]
    return bug, None, f"not within {bug.seeds} seeds"


def look_for_bugs(bugs: list[Bug]) -> int:
    """How many were found."""
    found = 0
    with ThreadPoolExecutor(JOBS) as pool:
        for bug, seed, said in pool.map(find_bug, bugs):
            if seed is None:
                print(f"  NOT FOUND  {bug.name}: {bug.text}: {said}", flush=True)
            else:
                found += 1
                print(f"  {seed + 1:5} seeds  {bug.name}: {said[:90]}", flush=True)
    return found


# ---- what is said


def rare_events(tally: Tally) -> Iterator[str]:
    for event, seeds in sorted(tally.reached.items(), key=lambda item: item[1]):
        if seeds < REACHED_IN * tally.seeds:
            yield event


def print_events(tally: Tally) -> None:
    print(f"events, in % of {tally.seeds} seeds:")
    words = [
        f"{event} {100 * seeds / tally.seeds:.0f}"
        for event, seeds in sorted(tally.reached.items(), key=lambda item: item[1])
    ]
    for at in range(0, len(words), 4):
        print("  " + "".join(f"{word:<28}" for word in words[at : at + 4]).rstrip())


def run_many(first: int, count: int, bugs: list[Bug]) -> int:
    started = time.monotonic()

    def told(tally: Tally) -> None:
        for seed in sorted(tally.failures.keys() - said):
            said.add(seed)
            print(f"seed {seed} FAILED: {tally.failures[seed]}  (make sim SEED={seed})", flush=True)

    said: set[int] = set()
    print(f"seeds {first} to {first + count - 1}", flush=True)
    tally = run_seeds(LAB, first, count, told)
    seconds = time.monotonic() - started
    print_events(tally)
    print(
        f"{tally.operations} operations in {seconds:.1f} s ({tally.operations / seconds:,.0f} a second), "
        f"{tally.virtual_ns / 1e9:.0f} s of virtual time ({tally.virtual_ns / 1e9 / seconds:.2f} a second)"
    )
    rare = list(rare_events(tally)) if count >= SEEDS_FOR_EVENTS else []
    for event in rare:
        print(f"RARE: {event} was reached in less than {REACHED_IN:.0%} of the seeds")
    found = 0
    if bugs:
        print("known bugs, and after how many seeds they were found:")
        found = look_for_bugs(bugs)
    print(f"{tally.seeds} seeds, {len(tally.failures)} failed, {found}/{len(bugs)} known bugs found")
    return 1 if tally.failures or rare or found != len(bugs) else 0


def run_one(lab: Path, seed: int) -> int:
    ran = subprocess.run([lab, "--seed", str(seed), "--trace"], check=False)
    if ran.returncode < 0:
        print(f"seed {seed}: the process ended by signal {-ran.returncode}")
    return 0 if ran.returncode == 0 else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="the simulator")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first")
    parser.add_argument("--fresh", action="store_true", help="begin where the clock says")
    parser.add_argument("--seed", type=int, help="this one, with its history")
    parser.add_argument("--bug", help="with this known bug")
    parser.add_argument("--no-bugs", action="store_true", help="do not look for the known bugs")
    given = parser.parse_args()
    built = (
        configure(FOLDER, GCC, *PCH)
        and not subprocess.run(
            [TOOLS / "ninja", "-C", FOLDER, f"-j{JOBS}", "--quiet", "tests/sim/lab"], check=False
        ).returncode
    )
    if not built:
        return 1
    bugs = known_bugs()
    if given.bug is not None:
        bugs = [bug for bug in bugs if bug.name == given.bug]
        if not bugs:
            print(f"no known bug is called {given.bug}", file=sys.stderr)
            return 2
    if given.seed is not None:
        if given.bug is None:
            return run_one(LAB, given.seed)
        with tempfile.TemporaryDirectory() as name:
            try:
                return run_one(build_with(bugs[0], Path(name)), given.seed)
            except NotBuilt as problem:
                print(f"{bugs[0].name}: {problem}", file=sys.stderr)
                return 1
    first = int(time.time()) % 1_000_000_000 if given.fresh else given.first
    if given.bug is not None:
        return 0 if look_for_bugs(bugs) else 1
    return run_many(first, given.seeds, [] if given.no_bugs else bugs)


if __name__ == "__main__":
    sys.exit(main())
