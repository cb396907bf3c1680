"""Mutation testing of the core: changes one place of csrc/{base,coro,aio,block} at a time, mechanically, and
looks whether the simulator, the explorers or the native tests notice.

    mutate.py --count 200 --seed 1      that many places, chosen by the seed
    mutate.py --lab                     the simulator alone looks; a run without goes on with what it left
    mutate.py --only 17                 one of them, with what the tests said
    mutate.py --list                    what they would be

Works on a copy in build/mutants, so the tree stays as it is. Each outcome is a line of
build/mutants/results.jsonl; a run goes on where the last one of the same seed ended. A mutant is killed when
a program fails, ends by a signal or takes ten times as long as it should. Exit status 0: all were tried.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from run_tests import BUILD, ROOT, TOOLS

FOLDER = BUILD / "mutants"
TREE = FOLDER / "tree"
OUT = FOLDER / "out"
RESULTS = FOLDER / "results.jsonl"
FOLDERS = ("base", "coro", "aio", "block")
LAB = "tests/sim/lab"
LAB_SEEDS = 60
LEFT_BY_THE_LAB = "left by the lab"
PATIENCE = 10  # times as long as usual
PATIENCE_MIN_S = 30.0
BUILD_S_MAX = 900

# (kind, what is looked for, what it becomes). The first group of each pattern is replaced.
SWAPS: tuple[tuple[str, str, str], ...] = (
    ("operator", r"\w (<) \w", "<="),
    ("operator", r"\w (<=) \w", "<"),
    ("operator", r"\w (>) \w", ">="),
    ("operator", r"\w (>=) \w", ">"),
    ("operator", r"(==)", "!="),
    ("operator", r"(!=)", "=="),
    ("operator", r"(&&)", "||"),
    ("operator", r" (\|\|) ", "&&"),
    ("operator", r"[\w)\]] (\+) \w", "-"),
    ("operator", r"[\w)\]] (-) \w", "+"),
    ("operator", r"(\+\+)", "--"),
    ("operator", r"(--)", "++"),
    ("operator", r"(\+=)", "-="),
    ("operator", r"(-=)", "+="),
    ("operator", r"[\w)] (&) ~?\w", "|"),
    ("operator", r"[ (](!)\w", ""),
    ("operator", r"(std::min)\b", "std::max"),
    ("operator", r"(std::max)\b", "std::min"),
    ("constant", r"\b(true)\b", "false"),
    ("constant", r"\b(false)\b", "true"),
    ("constant", r"(?<![\w.'])(0)(?![\w.'])", "1"),
    ("constant", r"(?<![\w.'])(1)(?![\w.'])", "2"),
    ("constant", r"(?<![\w.'])([2-9]|[1-9]\d+)(?![\w.'])", "1"),
    ("order", r"_(acquire)\(", "relaxed"),
    ("order", r"_(release)\(", "relaxed"),
    ("order", r"_(acq_rel)\(", "relaxed"),
    ("order", r"_(seq_cst)\(", "acq_rel"),
)
# A call or an assignment on a line of its own; a declaration has a blank before its name.
STATEMENT = re.compile(
    r"^\s+(?!return|co_return|break|continue|else|case|using|throw|delete)"
    r"[\w:.>\-\[\]*()]+(?:\(.*\)| [-+|&]?= .*|\+\+|--);$"
)
# No place for a mutation: what checks, what the preprocessor and the compiler read, and text.
LEFT_ALONE = re.compile(
    r"^\s*(?:#|//|static_assert|ENGINE_|using |template|friend |extern )"
    r"|\boperator\b|= delete|= default|throw_|__attribute__"
)


@dataclass(frozen=True)
class Mutation:
    number: int
    file: str
    line: int  # from 1
    kind: str
    before: str
    after: str


def without_text(line: str) -> str:
    """Strings and comments blanked, so that columns stay."""
    line = re.sub(r'"(?:[^"\\]|\\.)*"', lambda text: '"' + "_" * (len(text[0]) - 2) + '"', line)
    return re.sub(r"//.*$", lambda text: " " * len(text[0]), line)


def changes_of(line: str) -> Iterator[tuple[str, str]]:
    """(kind, the line afterwards)."""
    code = without_text(line)
    if LEFT_ALONE.search(code) or not code.strip():
        return
    for kind, pattern, new in SWAPS:
        for found in re.finditer(pattern, code):
            text = new
            if kind == "order" and new == "acq_rel":  # of a load or a store there is only half of it
                text = {"load": "acquire", "store": "release"}.get(
                    code[: found.start()].rpartition(".")[2].rpartition(">")[2], new
                )
            yield kind, line[: found.start(1)] + text + line[found.end(1) :]
    if STATEMENT.match(code.rstrip()):
        yield "statement", re.match(r"\s*", line)[0] + ";"  # type: ignore[index]


def candidates() -> list[tuple[str, int, str, str, str]]:
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / "csrc" / folder).glob("*.*")):
            if path.name == "atomic.hh":  # the explorers have another one
                continue
            name = str(path.relative_to(ROOT))
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                found += [(name, number, kind, line, after) for kind, after in changes_of(line)]
    return found


def choose(count: int, seed: int) -> list[Mutation]:
    """One in eight is an order, of which tests on this processor see few; the other kinds share the rest."""
    generator = random.Random(seed)
    by_kind: dict[str, list[tuple[str, int, str, str, str]]] = {}
    for each in candidates():
        by_kind.setdefault(each[2], []).append(each)
    chosen: list[tuple[str, int, str, str, str]] = []
    kinds = sorted(by_kind, key=lambda kind: kind != "order")
    for left, kind in zip(range(len(kinds), 0, -1), kinds, strict=True):
        share = count // 8 if kind == "order" else (count - len(chosen)) // left
        share = min(share, len(by_kind[kind]))
        chosen += generator.sample(by_kind[kind], share)
    generator.shuffle(chosen)
    return [Mutation(i, *each) for i, each in enumerate(chosen)]


# ---- building and running

# What base::Atomic lacks, because nobody should want it.
EXCHANGED = (
    ("exchange", "exchange"),
    ("fetch_add", "add"),
    ("fetch_sub", "subtract"),
    ("fetch_or", "bit_or"),
    ("fetch_and", "bit_and"),
)


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
        path.write_text(
            text.replace("  private:", "\n".join(missing) + "\n\n  private:", 1), encoding="utf-8"
        )


def ninja(*targets: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS / "ninja", "-C", OUT, "-j2", *targets],
        capture_output=True, text=True, timeout=BUILD_S_MAX, check=False,
    )  # fmt: skip


def set_up(lab_alone: bool) -> None:
    """A copy of the tree as it is now, built."""
    if not (OUT / "build.ninja").exists():
        shutil.rmtree(FOLDER, ignore_errors=True)
        TREE.mkdir(parents=True)
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
        give_weak_orders(TREE)
        subprocess.run(
            [TOOLS / "meson", "setup", OUT, TREE, "-Dpython_module=false", "-Dnative_tests=true",
             "-Dbuildtype=debugoptimized", "-Ddebug=false", "-Doptimization=1", "-Db_ndebug=false"],
            check=True,
        )  # fmt: skip
    built = ninja(*([LAB] if lab_alone else []))
    if built.returncode:
        raise SystemExit(f"the tree as it is does not build:\n{built.stdout[-2000:]}")


@dataclass(frozen=True)
class Program:
    name: str
    command: list[str]

    def run(self, limit_s: float | None) -> tuple[str, float]:
        """(what went wrong, or "", seconds)."""
        started = time.monotonic()
        try:
            ran = subprocess.run(
                self.command, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return "hangs", time.monotonic() - started
        seconds = time.monotonic() - started
        if ran.returncode == 0:
            return "", seconds
        lines = (ran.stdout + ran.stderr).strip().splitlines()
        said = next(
            (line for line in lines if re.search("FAIL|failed|check failed", line)),
            lines[-1] if lines else "",
        )
        return f"{ran.returncode}: {said[:160]}", seconds


def programs() -> list[Program]:
    """The lab first, which finds most, then the others as they stand in meson.build."""
    listed = json.loads((OUT / "meson-info" / "intro-tests.json").read_text(encoding="utf-8"))
    lab = OUT / "tests" / "sim" / "lab"
    first = [Program("lab", [str(lab), "--from", "0", "--count", str(LAB_SEEDS)])]
    return first + [Program(test["name"], test["cmd"]) for test in listed if test["name"] != "lab"]


def usual_times(all_programs: list[Program]) -> dict[str, float]:
    """Seconds, of the tree as it is, where each must pass."""
    times = FOLDER / "times.json"
    known: dict[str, float] = json.loads(times.read_text(encoding="utf-8")) if times.exists() else {}
    for program in all_programs:
        if program.name in known:
            continue
        wrong, seconds = program.run(None)
        if wrong:
            raise SystemExit(f"{program.name} fails as it is: {wrong}")
        known[program.name] = seconds
    times.write_text(json.dumps(known), encoding="utf-8")
    return known


def by_likelihood(mutation: Mutation, all_programs: list[Program], usual: dict[str, float]) -> list[Program]:
    """The lab, what has the file's name in its own, and the rest, the short ones first."""
    stem = Path(mutation.file).stem
    rest = sorted(all_programs[1:], key=lambda program: (stem not in program.name, usual[program.name]))
    return [all_programs[0], *rest]


def judge(mutation: Mutation, all_programs: list[Program], usual: dict[str, float]) -> str:
    """ "killed by …", "survived", "left by the lab" (where that is all) or "does not build"."""
    if ninja(LAB).returncode:
        return "does not build"
    whole = False
    for program in by_likelihood(mutation, all_programs, usual):
        if not whole and program.name != "lab":
            if ninja().returncode:
                return "does not build"
            whole = True
        wrong, _ = program.run(max(PATIENCE_MIN_S, PATIENCE * usual[program.name]))
        if wrong:
            return f"killed by {program.name}: {wrong}"
    return "survived" if len(all_programs) > 1 else LEFT_BY_THE_LAB


def try_one(mutation: Mutation, all_programs: list[Program], usual: dict[str, float]) -> str:
    path = TREE / mutation.file
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    if lines[mutation.line - 1] != mutation.before:
        raise SystemExit(f"{mutation.file} has changed: remove {FOLDER.relative_to(ROOT)} and begin again")
    lines[mutation.line - 1] = mutation.after
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        return judge(mutation, all_programs, usual)
    except subprocess.TimeoutExpired:
        return "does not build"
    finally:
        path.write_text(text, encoding="utf-8")


# ---- what is said


def describe(mutation: Mutation) -> str:
    place = f"#{mutation.number} {mutation.file}:{mutation.line} {mutation.kind}"
    return f"{place}: {mutation.before.strip()}  =>  {mutation.after.strip()}"


def done_before(seed: int) -> dict[int, str]:
    if not RESULTS.exists():
        return {}
    lines = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
    return {line["number"]: line["outcome"] for line in lines if line["seed"] == seed}  # the last counts


def main() -> int:
    parser = argparse.ArgumentParser(description="mutation testing of the core")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="this one, which may have been tried before")
    parser.add_argument("--lab", action="store_true", help="with the simulator alone")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is changed is put back
    os.environ["PATH"] = f"{TOOLS}:{os.environ.get('PATH', '')}"  # one ninja: two undo each other's work
    mutations = choose(given.count, given.seed)
    if given.list:
        print("\n".join(map(describe, mutations)))
        return 0
    set_up(given.lab)
    all_programs = programs()[: 1 if given.lab else None]
    usual = usual_times(all_programs)
    outcomes = done_before(given.seed)
    for mutation in sorted(mutations, key=lambda one: one.file.endswith(".hh")):  # sources build sooner
        known = outcomes.get(mutation.number)
        done = known is not None and (given.lab or known != LEFT_BY_THE_LAB)
        if mutation.number != given.only if given.only is not None else done:
            continue
        started = time.monotonic()
        outcome = try_one(mutation, all_programs, usual)
        outcomes[mutation.number] = outcome
        print(f"{describe(mutation)}\n    {outcome} ({time.monotonic() - started:.0f} s)", flush=True)
        if given.only is None:
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": given.seed, "outcome": outcome, **asdict(mutation)}) + "\n")
    counts = Counter(outcome.partition(":")[0].partition(" by")[0] for outcome in outcomes.values())
    print(f"{len(outcomes)} mutants: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
