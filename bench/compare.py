"""`make bench-compare A=… B=…`: what drifted between two commits, or between two stored JSON files.

A drift is called real only where the two sets of rounds do not overlap; ratios to peers stand beside it,
since they do not drift with the machine. Single-threaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


class CompareError(Exception):
    """One line for the user."""


def stored(name: str) -> list[Path]:
    """A file, or all results of a commit (any unambiguous beginning of it), oldest first."""
    path = Path(name)
    if path.is_file():
        return [path]
    found = sorted(path for path in RESULTS.glob(f"{name}*.json") if not path.stem.endswith("-quick"))
    # COMMIT-TIME and COMMIT-dirty-TIME: the commit's own results where there are any.
    clean = [path for path in found if "-dirty-" not in path.name]
    found = clean or found
    commits = {path.name.rpartition("-")[0] for path in found}
    if not found:
        raise CompareError(f"{name}: no such file, and no results of that commit in {RESULTS}")
    if len(commits) > 1:
        raise CompareError(f"{name}: is the beginning of several: {', '.join(sorted(commits))}")
    return found


def load(name: str) -> dict[str, dict[str, Any]]:
    """Benchmarks by name; a later run of the same commit replaces an earlier one."""
    benchmarks: dict[str, dict[str, Any]] = {}
    for path in stored(name):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            benchmarks.update({each["name"]: each for each in document["benchmarks"]})
        except (ValueError, KeyError, TypeError) as error:
            raise CompareError(f"{path}: is not the JSON of a benchmark: {error}") from error
    return benchmarks


def rates(benchmark: dict[str, Any]) -> tuple[float, float, float]:
    """Lowest, median and highest, in millions a second, from seconds for 10⁶ requests."""
    stats = benchmark["stats"]
    return 1 / stats["max"], 1 / stats["median"], 1 / stats["min"]


def ratios(benchmark: dict[str, Any]) -> dict[str, float]:
    return {each["peer"]: each["rate"]["median"] for each in benchmark["extra_info"].get("ratios", [])}


def verdict(a: tuple[float, float, float], b: tuple[float, float, float]) -> str:
    if a[0] <= b[2] and b[0] <= a[2]:
        return "within the spread"
    return "faster" if b[1] > a[1] else "SLOWER"


def table(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"{'benchmark':<42} {'A M/s':>9} {'B M/s':>9} {'drift':>8}"]
    for name in sorted(a.keys() & b.keys()):
        before, after = rates(a[name]), rates(b[name])
        drift = 100 * (after[1] / before[1] - 1)
        short = name.removeprefix("test_peers[").removesuffix("]")
        lines.append(
            f"{short:<42} {before[1]:>9.3f} {after[1]:>9.3f} {drift:>+7.1f}%  {verdict(before, after)}"
        )
        older, newer = ratios(a[name]), ratios(b[name])
        lines += [
            f"    ratio to {peer:<33} {older[peer]:>7.3f} x {newer[peer]:>7.3f} x"
            for peer in older
            if peer in newer
        ]
    for name in sorted(a.keys() ^ b.keys()):
        lines.append(f"{name}: only in {'A' if name in a else 'B'}")
    return lines


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: compare.py A B      commits with stored results, or files", file=sys.stderr)
        return 2
    try:
        print("\n".join(table(load(arguments[0]), load(arguments[1]))))
    except CompareError as error:
        print(f"bench-compare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
