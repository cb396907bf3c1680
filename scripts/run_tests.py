"""Runs the parts of `make test` one after another, goes on after a failure, and sums up what ran.

Each part is a named function that returns counts. The summary, `N passed, N failed, N skipped`, is the
last line and build/reports/summary.txt; the exit status is non-zero when anything failed or nothing ran.
Single-threaded: the tools that it starts use two jobs each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
REPORTS = BUILD / "reports"
TOOLS = Path(sys.executable).parent  # meson, ninja, pytest, ruff and mypy of the same environment
JOBS = "2"
PYTEST_JOBS = "3"  # many of its tests wait
CLANG_VERSIONS = (19, 22, 21, 20, 18, 17, 16)  # 19 first: the output of clang-format differs between versions
PYTHON_SOURCES = ("engine", "tests", "bench", "scripts")


@dataclass(frozen=True)
class Counts:
    """Tests, not assertions. A check that is one command counts as one test."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


Part = Callable[[], Counts]
FAILED = Counts(failed=1)
LINES_SHOWN_AGAIN = 30  # of each part that failed, beside the summary: a log's end is what one sees of it
latest: list[str] = []  # what the failed commands of the running part said


def run(*command: str | Path, env: Mapping[str, str] | None = None, capture: bool = False) -> tuple[int, str]:
    """Runs it with the environment's tools first in PATH: (exit status, output where asked for). What it
    says is shown as it comes, and its end is kept for `latest`."""
    words = [str(word) for word in command]
    print("+", " ".join(words[:12]), "…" if len(words) > 12 else "", flush=True)
    path = f"{TOOLS}:{os.environ.get('PATH', '')}"
    output = bytearray()
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, "PATH": path, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        while part := os.read(process.stdout.fileno(), 1 << 16):
            output += part
            if not capture:
                sys.stdout.buffer.write(part)
                sys.stdout.buffer.flush()
    text = output.decode(errors="replace")
    if process.returncode != 0:
        latest.extend([f"+ {' '.join(words[:3])} …: exit status {process.returncode}", *text.splitlines()])
    return process.returncode, text if capture else ""


def check(*command: str | Path, env: Mapping[str, str] | None = None) -> Counts:
    """A command that is one test."""
    return Counts(passed=1) if run(*command, env=env)[0] == 0 else FAILED


def clang_tool(name: str) -> str | None:
    """`clang++-19` and the like: version 19 where it is there, else the newest."""
    return next((tool for v in CLANG_VERSIONS if (tool := shutil.which(f"{name}-{v}"))), None)


# ---- native tests ----


def configure(folder: Path, compiler: Mapping[str, str], *options: str) -> bool:
    """Once for each folder; afterwards ninja configures again by itself where a meson.build changed."""
    if (folder / "build.ninja").exists():
        return True
    shutil.rmtree(folder, ignore_errors=True)
    status, _ = run(
        "meson", "setup", folder, "-Dpython_module=false", "-Dnative_tests=true",
        "-Dbuildtype=debugoptimized", "-Ddebug=false", "-Dcpp_args=-g1", "-Db_ndebug=false", "-Dwerror=true",
        *options, env=compiler,
    )  # fmt: skip
    return status == 0


def native_counts(folder: Path) -> Counts:
    """From meson's log. A program that prints `N passed, N failed` counts its own tests."""
    counts = Counts()
    log = folder / "meson-logs" / "testlog.json"
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        test = json.loads(line)
        own = re.findall(r"^(\d+) passed, (\d+) failed", test.get("stdout") or "", re.MULTILINE)
        if test["result"] == "SKIP":
            counts += Counts(skipped=1)
        elif test["result"] not in ("OK", "EXPECTEDFAIL"):
            passed, failed = map(int, own[-1]) if own else (0, 0)
            counts += Counts(passed, max(failed, 1))
        else:
            counts += Counts(passed=int(own[-1][0]) if own else 1)
    return counts


def native(
    name: str, compiler: Mapping[str, str], *options: str, env: Mapping[str, str] | None = None
) -> Counts:
    folder = BUILD / name
    if not configure(folder, compiler, *options):
        return FAILED
    if run("ninja", "-C", folder, f"-j{JOBS}")[0] != 0:
        return FAILED
    status, _ = run(
        "meson", "test", "-C", folder, "--no-rebuild", "--print-errorlogs", "--num-processes", JOBS, env=env
    )
    counts = native_counts(folder)
    return counts if status == 0 or counts.failed else counts + FAILED


SANITIZED = ("-Db_lundef=false", "-Doptimization=1")
PCH = ("-Db_pch=true",)
UNIFIED = ("-Dunified=true",)  # a change of one file compiles ten: not for what is built again and again
TSAN_OPTIONS = ("-Db_sanitize=thread", *SANITIZED)
GCC = {"CC": os.environ.get("CC", "gcc"), "CXX": os.environ.get("CXX", "g++")}


def clang() -> dict[str, str]:
    """With the linker of its own, where it is installed: it takes a third of the time."""
    compilers = {"CC": clang_tool("clang") or "clang", "CXX": clang_tool("clang++") or "clang++"}
    return compilers | ({"CC_LD": "lld", "CXX_LD": "lld"} if clang_tool("ld.lld") else {})


def test_native() -> Counts:
    return native("native", GCC, *PCH)


def test_asan() -> Counts:
    """With clang: g++ takes three times as long to build it."""
    env = {
        "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "LSAN_OPTIONS": "print_suppressions=0",
    }
    return native("asan", clang(), "-Db_sanitize=address,undefined", *SANITIZED, *PCH, *UNIFIED, env=env)


def test_tsan() -> Counts:
    """With clang, so that both compilers build everything with -Werror."""
    env = {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1:abort_on_error=1"}
    return native("tsan", clang(), *TSAN_OPTIONS, *PCH, *UNIFIED, env=env)


def test_dialect() -> Counts:
    """Its script prints a line, ok or FAIL, for each compiler and mode."""
    compilers = f"{GCC['CXX']} {clang()['CXX']}"
    status, output = run("sh", "tests/native/dialect.sh", env={"CXX": compilers}, capture=True)
    print(output, end="")
    counts = Counts(
        len(re.findall(r"^ok ", output, re.MULTILINE)), len(re.findall(r"^FAIL ", output, re.MULTILINE))
    )
    return counts if status == 0 or counts.failed else counts + FAILED


def test_sim() -> Counts:
    """Fresh seeds, printed; each known bug that is found counts as a test, and so do all seeds together."""
    status, output = run(sys.executable, "scripts/sim.py", "--fresh", "--seeds", "1000", capture=True)
    print(output, end="")
    closing = re.findall(r"^\d+ seeds, (\d+) failed, (\d+)/(\d+) known bugs found$", output, re.MULTILINE)
    if not closing:
        return FAILED
    failed, found, known = map(int, closing[-1])
    good = failed == 0 and (status == 0 or found != known)
    return Counts(passed=found + good, failed=known - found + (not good))


FUZZ_RUNS = "1000"  # of each fuzzer: about 20 seconds in all


def test_fuzz() -> Counts:
    """The short form of `make fuzz`. The canary counts as a test."""
    status, output = run(sys.executable, "scripts/fuzz.py", "--runs", FUZZ_RUNS, capture=True)
    print(output, end="")
    closing = re.search(r"^(\d+) fuzzers, (\d+) failed, canary (found)?", output, re.MULTILINE)
    if closing is None:
        return FAILED
    total, failed, found = int(closing[1]), int(closing[2]), closing[3] is not None
    counts = Counts(total - failed + found, failed + (not found))
    return counts if status == 0 or counts.failed else counts + FAILED


# ---- Python tests ----


def test_python() -> Counts:
    report = REPORTS / "pytest.xml"
    report.unlink(missing_ok=True)
    status, _ = run(
        sys.executable, "-m", "pytest", "-n", PYTEST_JOBS, "--dist=worksteal", f"--junitxml={report}"
    )
    if not report.exists():
        return FAILED
    counts = Counts()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        counts += Counts(max(total - skipped - failed, 0), failed, skipped)
    return counts if status == 0 or counts.failed else counts + FAILED


# ---- linters ----


def native_sources(*suffixes: str) -> list[Path]:
    """What clang-format shapes. The public C headers are laid out by hand, for readers and for cffi."""
    native_tests = (ROOT / "tests" / name for name in ("native", "sim", "fuzz"))
    folders = (ROOT / "csrc", *native_tests, ROOT / "bench" / "micro")
    public = ROOT / "csrc" / "include"
    found = (path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes)
    return sorted(path for path in found if public not in path.parents)


def test_lint() -> Counts:
    return test_ruff() + test_mypy() + test_clang_format() + test_clang_tidy()


def test_ruff() -> Counts:
    return check("ruff", "check", *PYTHON_SOURCES) + check("ruff", "format", "--check", *PYTHON_SOURCES)


def test_mypy() -> Counts:
    return check("mypy", "--strict", "engine") + check("mypy", "--strict", "bench/peers", "scripts")


def test_clang_format() -> Counts:
    tool = clang_tool("clang-format")
    if tool is None:
        return FAILED
    status, output = run(tool, "--dry-run", "-Werror", *native_sources(".cc", ".hh"), capture=True)
    differing = dict.fromkeys(re.findall(r"^(\S+?):\d+:\d+: error", output, re.MULTILINE))
    for path in differing:
        print(f"{path}: not as clang-format lays it out; make format rewrites it")
    if status != 0 and not differing:
        print(output)
    return Counts(passed=1) if status == 0 else FAILED


def test_clang_tidy() -> Counts:
    """With the flags of the clang build. Most of the work is the standard library's headers: so ten sources
    are one to it, which the analyser takes for headers. It may take a fortieth of its usual steps for each
    function."""
    analyser = ("-analyzer-opt-analyze-headers", "-analyzer-config", "max-nodes=6000")
    tidy = clang_tool("clang-tidy")
    if tidy is None or not configure(BUILD / "tidy", clang(), *TSAN_OPTIONS, *UNIFIED):
        return FAILED
    driver = clang_tool("run-clang-tidy") or "run-clang-tidy"
    extra = [f"-extra-arg={word}" for option in analyser for word in ("-Xclang", option)]
    return check(
        driver,
        "-clang-tidy-binary",
        tidy,
        "-p",
        BUILD / "tidy",
        "-quiet",
        "-checks=-bugprone-suspicious-include",
        "-j",
        JOBS,
        *extra,
        "engine_objects-unity",
    )


def rewrite() -> Counts:
    """Not a test: `make format`."""
    counts = check("ruff", "check", "--fix", *PYTHON_SOURCES) + check("ruff", "format", *PYTHON_SOURCES)
    return counts + check(clang_tool("clang-format") or "clang-format", "-i", *native_sources(".cc", ".hh"))


PARTS: dict[str, Part] = {
    "lint": test_lint,
    "dialect": test_dialect,
    "native": test_native,
    "asan": test_asan,
    "tsan": test_tsan,
    "sim": test_sim,
    "fuzz": test_fuzz,
    "python": test_python,
}
OTHERS: dict[str, Part] = {
    "ruff": test_ruff,
    "mypy": test_mypy,
    "clang-format": test_clang_format,
    "clang-tidy": test_clang_tidy,
    "format": rewrite,
}


def main(arguments: list[str]) -> int:
    known = PARTS | OTHERS
    if unknown := [name for name in arguments if name not in known]:
        print(f"no part is called {unknown[0]}; there are {' '.join(known)}", file=sys.stderr)
        return 2
    REPORTS.mkdir(parents=True, exist_ok=True)
    total = Counts()
    lines: list[str] = []
    again: list[str] = []
    for name in arguments or list(PARTS):
        print(f"\n==== {name}", flush=True)
        started = time.monotonic()
        latest.clear()
        counts = known[name]()
        lines.append(f"  {name:<13} {counts}  ({time.monotonic() - started:.0f} s)")
        if counts.failed:
            again += [f"\n==== {name}, which failed, ended so:", *latest[-LINES_SHOWN_AGAIN:]]
        total += counts
    print("\n".join([*again, "", *lines]))
    (REPORTS / "summary.txt").write_text(f"{total}\n", encoding="utf-8")
    print(total, flush=True)
    return 0 if total.passed and not total.failed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
