"""Mutation testing of the core: changes one place of csrc/{base,coro,aio,block} at a time, mechanically, and
looks whether the simulator, the explorers or the native tests notice.

    mutate.py --count 200 --seed 1      that many places, chosen by the seed
    mutate.py --quick 3                 with what takes 3 s at most, and what is named after the file; a run
                                        without goes on with what that left
    mutate.py --only 17 23              these of them again, with what the tests said
    mutate.py --list                    what they would be, and what became of those that were tried

Works on a copy in build/mutants, so the tree stays as it is. Nearly all mutants share one build, each behind
a switch that a variable of the environment turns on; the few that do not go into an expression are built one
by one. Which program reaches which switch is seen first: a mutant meets the lab and those alone that reach
it, the likely and the short ones first. Each outcome is a line of build/mutants/results.jsonl; a run goes on
where the last one of the same seed ended. A mutant is killed when a program fails, ends by a signal or takes
ten times as long as it should. Exit status 0: all were tried.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from mutants import SWITCH_HEADER, SWITCH_INCLUDE, SWITCHES_MAX, Mutation, choose, with_switches
from run_tests import BUILD, PCH, ROOT, TOOLS

FOLDER = BUILD / "mutants"
TREE = FOLDER / "tree"
OUT = FOLDER / "out"
RESULTS = FOLDER / "results.jsonl"
REACHED = FOLDER / "reached"
LAB = "tests/sim/lab"
LAB_SEEDS = 60
AT_ONCE = 2  # mutants with a switch
LEFT = "left by the quick ones"
PATIENCE = 10  # times as long as usual
PATIENCE_MIN_S = 20.0
BUILD_S_MAX = 3600
BUILT_AT_ONCE = 4  # programs of a mutant without a switch: those behind the one that kills are for nothing

# What base::Atomic lacks, because nobody should want it.
EXCHANGED = (
    ("exchange", "exchange"),
    ("fetch_add", "add"),
    ("fetch_sub", "subtract"),
    ("fetch_or", "bit_or"),
    ("fetch_and", "bit_and"),
)


# ---- the copy


def give_weak_orders(tree: Path) -> None:
    """To both, the wrapper and the explorer's."""
    shipped, explored = [], []
    for name, change in EXCHANGED:
        shipped.append(
            f"    T {name}_relaxed(T v) noexcept {{ return value_.{name}(v, std::memory_order_relaxed); }}"
        )
        explored.append(
            f"    T {name}_relaxed(T v) {{ return this->change(Change::{change}, v, Order::relaxed); }}"
        )
    shipped.append(
        "    bool compare_exchange_relaxed(T& expected, T desired) noexcept {"
        " return value_.compare_exchange_weak(expected, desired, std::memory_order_relaxed); }"
    )
    explored.append(
        "    bool compare_exchange_relaxed(T& expected, T desired) {"
        " return compare_exchange(expected, desired, Order::relaxed, Order::relaxed); }"
    )
    for path, lines in (
        (tree / "csrc/base/atomic.hh", shipped),
        (tree / "tests/native/explore/explore_atomic.hh", explored),
    ):
        text = path.read_text(encoding="utf-8")
        missing = [line for line in lines if line.split("(")[0] + "(" not in text]
        if missing:
            text = text.replace("  private:", "\n".join(missing) + "\n\n  private:", 1)
            path.write_text(text, encoding="utf-8")


def ninja(*targets: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS / "ninja", "-C", OUT, "-j2", *targets],
        capture_output=True, text=True, timeout=BUILD_S_MAX, check=False,
    )  # fmt: skip


def write_if_other(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


class Copy:
    """Of the tree as it is now, with switches."""

    def __init__(self, mutations: list[Mutation]) -> None:
        by_line: dict[tuple[str, int], list[Mutation]] = {}
        for mutation in mutations:
            by_line.setdefault((mutation.file, mutation.line), []).append(mutation)
        self.switched: dict[str, dict[int, tuple[str, list[Mutation]]]] = {}  # by file and line
        for (file, line), there in by_line.items():
            text = with_switches(there[0].before, [(one.number, one.after) for one in there])
            if text is not None:
                self.switched.setdefault(file, {})[line] = (text, there)

    def numbers(self) -> set[int]:
        """Of those that have a switch."""
        lines = (lines.values() for lines in self.switched.values())
        return {one.number for each in lines for _, there in each for one in there}

    def write(self, file: str, instead: Mutation | None = None) -> None:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        for line, (text, _) in self.switched.get(file, {}).items():
            lines[line - 1] = text
        if instead is not None:
            lines[instead.line - 1] = instead.after
        if file in self.switched:
            lines[0] = SWITCH_INCLUDE  # each file begins with a comment
        write_if_other(TREE / file, "\n".join(lines) + "\n")

    def write_all(self) -> None:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            source, kept = ROOT / name, FOLDER / "as_it_was" / name
            if kept.exists() and kept.read_bytes() == source.read_bytes():
                continue
            for to in (kept, TREE / name):
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, to)
        for name in self.switched:
            self.write(name)
        write_if_other(TREE / "csrc/base/mutant.hh", SWITCH_HEADER)
        give_weak_orders(TREE)

    def build(self) -> None:
        """Switches that the compiler refuses are given up."""
        if not (OUT / "build.ninja").exists():
            subprocess.run(
                [TOOLS / "meson", "setup", OUT, TREE, "-Dpython_module=false", "-Dnative_tests=true",
                 "-Dbuildtype=debugoptimized", "-Ddebug=false", "-Doptimization=1", "-Db_ndebug=false", *PCH],
                check=True,
            )  # fmt: skip
        while (built := ninja("-k", "0")).returncode:
            places = set(re.findall(r"tree/(csrc/[\w/.]+):(\d+):\d+: error", built.stdout))
            given_up = [(f, int(n)) for f, n in places if int(n) in self.switched.get(f, {})]
            if not given_up:
                raise SystemExit(f"the tree as it is does not build:\n{built.stdout[-3000:]}")
            for file, line in given_up:
                print(f"no switch: {file}:{line}", flush=True)
                del self.switched[file][line]
                self.write(file)


# ---- running


@dataclass(frozen=True)
class Program:
    name: str
    command: list[str]

    def target(self) -> str:
        return os.path.relpath(self.command[0], OUT)

    def run(self, limit_s: float | None, **env: str) -> tuple[str, float]:
        """(what went wrong, or "", seconds)."""
        started = time.monotonic()
        with subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env={**os.environ, **env}, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                return "hangs", time.monotonic() - started
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it has forked
        seconds = time.monotonic() - started
        if process.returncode == 0:
            return "", seconds
        lines = said.strip().splitlines()
        told = next((line for line in lines if re.search("FAIL|failed|check failed", line)), "")
        return f"{process.returncode}: {(told or ''.join(lines[-1:]))[:160]}", seconds


def programs() -> list[Program]:
    """The lab first, which finds most, then the others as they stand in meson.build."""
    listed = json.loads((OUT / "meson-info" / "intro-tests.json").read_text(encoding="utf-8"))
    first = [Program("lab", [str(OUT / LAB), "--from", "0", "--count", str(LAB_SEEDS)])]
    return first + [Program(test["name"], test["cmd"]) for test in listed if test["name"] != "lab"]


@dataclass(frozen=True)
class Usual:
    """Of a program, with no mutant on."""

    seconds: float
    reached: list[int]


def measure(all_programs: list[Program], again: bool) -> dict[str, Usual]:
    """Each must pass."""
    path = FOLDER / "usual.json"
    known: dict[str, Usual] = {}
    if path.exists() and not again:
        read = json.loads(path.read_text(encoding="utf-8"))
        known = {name: Usual(**usual) for name, usual in read.items()}
    for program in all_programs:
        if program.name in known:
            continue
        REACHED.write_bytes(bytes(SWITCHES_MAX))
        wrong, seconds = program.run(None, ENGINE_MUTANTS_REACHED=str(REACHED))
        if wrong:
            raise SystemExit(f"{program.name} fails as it is: {wrong}")
        reached = [number for number, byte in enumerate(REACHED.read_bytes()) if byte]
        known[program.name] = Usual(seconds, reached)
        path.write_text(json.dumps({name: asdict(usual) for name, usual in known.items()}), encoding="utf-8")
    return known


class Judge:
    def __init__(self, mutations: list[Mutation], again: bool) -> None:
        self.copy = Copy(mutations)
        self.copy.write_all()
        self.copy.build()
        self.programs = programs()
        self.usual = measure(self.programs, again)
        self.in_file = {
            file: {one.number for one in mutations if one.file == file} for file in self.copy.switched
        }

    def those_that_reach(self, mutation: Mutation) -> list[Program]:
        """Where it has no switch, what reaches another one of the file. The lab first, then what has the
        file's name in its own, then the short ones. Orders are for the explorers, and for tests of that file:
        on this processor the others cannot see them."""
        stem = Path(mutation.file).stem
        wanted = {mutation.number}
        if mutation.number not in self.copy.numbers():
            wanted = self.in_file.get(mutation.file, set())
        found = [
            one for one in self.programs if wanted.intersection(self.usual[one.name].reached) or not wanted
        ]
        if mutation.kind == "order":
            found = [one for one in found if one.name.startswith("explore") or stem in one.name]

        def order(one: Program) -> tuple[bool, bool, bool, float]:
            sees = mutation.kind != "order" or one.name.startswith("explore")
            return one.name != "lab", not sees, stem not in one.name, self.usual[one.name].seconds

        return sorted(found, key=order)

    def judge(self, mutation: Mutation, before: list[str], quick_s: float) -> tuple[str, list[str]]:
        """("killed by …", "survived", LEFT, "not reached" or "does not build", who looked). `before`: who did
        so in vain."""
        reaching = self.those_that_reach(mutation)
        stem = Path(mutation.file).stem
        looking = [one for one in reaching if one.name not in before]
        looking = [one for one in looking if self.usual[one.name].seconds <= quick_s or stem in one.name]
        tried = list(before)
        built = mutation.number in self.copy.numbers()
        if not built and not looking and ninja(LAB).returncode:
            return "does not build", tried
        for i, program in enumerate(looking):
            # The first alone: it may kill, or not build.
            group = looking[:1] if i == 0 else looking[i : i + BUILT_AT_ONCE]
            due = not built and i % BUILT_AT_ONCE == (i != 0)
            if due and ninja(*(one.target() for one in group)).returncode:
                return "does not build", tried
            tried.append(program.name)
            limit_s = max(PATIENCE_MIN_S, PATIENCE * self.usual[program.name].seconds)
            wrong, _ = program.run(limit_s, ENGINE_MUTANT=str(mutation.number))
            if wrong:
                return f"killed by {program.name}: {wrong}", tried
        if len(tried) < len(reaching):
            return LEFT, tried
        return "survived" if reaching else "not reached", tried

    def try_one(self, mutation: Mutation, before: list[str], quick_s: float) -> tuple[str, list[str]]:
        if mutation.number in self.copy.numbers():
            return self.judge(mutation, before, quick_s)
        self.copy.write(mutation.file, mutation)
        try:
            return self.judge(mutation, before, quick_s)
        finally:
            self.copy.write(mutation.file)


# ---- what is said


def describe(mutation: Mutation) -> str:
    place = f"#{mutation.number} {mutation.file}:{mutation.line} {mutation.kind}"
    return f"{place}: {mutation.before.strip()}  =>  {mutation.after.strip()}"


@dataclass(frozen=True)
class Entry:
    """A line of the results."""

    seed: int
    outcome: str
    looked: list[str]
    mutation: dict[str, object]


def done_before(seed: int) -> dict[int, Entry]:
    if not RESULTS.exists():
        return {}
    lines = [Entry(**json.loads(line)) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {int(str(one.mutation["number"])): one for one in lines if one.seed == seed}  # the last counts


class Run:
    def __init__(self, judge: Judge, seed: int, quick_s: float, entries: dict[int, Entry]) -> None:
        self.judge = judge
        self.seed = seed
        self.quick_s = quick_s
        self.entries = entries

    def one(self, mutation: Mutation) -> None:
        started = time.monotonic()
        known = self.entries.get(mutation.number)
        before = known.looked if known is not None and known.outcome == LEFT else []
        outcome, looked = self.judge.try_one(mutation, before, self.quick_s)
        entry = Entry(self.seed, outcome, looked, asdict(mutation))
        self.entries[mutation.number] = entry
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")
        seconds = time.monotonic() - started
        print(f"{describe(mutation)}\n    {outcome} ({len(looked)} looked, {seconds:.0f} s)", flush=True)

    def all(self, mutations: list[Mutation]) -> None:
        """Those that share the build side by side."""
        switched = self.judge.copy.numbers()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.one, [one for one in mutations if one.number in switched]))
        for mutation in sorted(mutations, key=lambda one: one.file.endswith(".hh")):  # sources build sooner
            if mutation.number not in switched:
                self.one(mutation)


def main() -> int:
    parser = argparse.ArgumentParser(description="mutation testing of the core")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--only", type=int, nargs="+", help="these, which may have been tried before")
    parser.add_argument("--skip", type=int, nargs="+", default=[], help="these, which reading has settled")
    parser.add_argument("--again", action="store_true", help="sees anew which program reaches what")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    if given.count > SWITCHES_MAX:
        parser.error(f"at most {SWITCHES_MAX} at a time")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is changed is put back
    os.environ["PATH"] = f"{TOOLS}:{os.environ.get('PATH', '')}"  # one ninja: two undo each other's work
    mutations = choose(given.count, given.seed)
    entries = done_before(given.seed)
    if given.list:
        for one in mutations:
            known = entries.get(one.number)
            print(f"{describe(one)}\n    {known.outcome if known else 'not tried'}")
        return 0
    if given.only:
        wanted = [one for one in mutations if one.number in given.only]
        entries = {}
    else:
        left = {number for number, entry in entries.items() if entry.outcome == LEFT and given.quick > 3600}
        wanted = [one for one in mutations if one.number not in entries or one.number in left]
        wanted = [one for one in wanted if one.number not in given.skip]
    Run(Judge(mutations, given.again), given.seed, given.quick, entries).all(wanted)
    outcomes = [entry.outcome for entry in entries.values()]
    counts = Counter(outcome.partition(":")[0].partition(" by")[0] for outcome in outcomes)
    print(f"{len(outcomes)} mutants: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
