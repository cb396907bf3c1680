"""The command line as a whole: what it costs to start, and how wrong usage is answered."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-P", "-m", "engine.cli"]


def engine(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


def loaded(*arguments: str) -> set[str]:
    """The modules that a command imports."""
    code = (
        "import sys\nbefore = set(sys.modules)  # an editable install has a loader with imports of its own\n"
        "from engine.cli import main\n"
        f"try: main({list(arguments)!r})\n"
        "except SystemExit: pass\n"
        "print('\\n' + ' '.join(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [("--help",), ("bench", "--help"), ("run", "--help")])
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    heavy = {
        "engine._native",
        "_cffi_backend",
        "psutil",
        "tomllib",
        "statistics",
        "subprocess",
        "asyncio",
        "json",
    }
    assert loaded(*arguments) & heavy == set()


def test_version_loads_little() -> None:
    """It asks the native core; nothing else may cost anything. Modules are counted, because time is not the
    same anywhere."""
    modules = loaded("--version")
    assert "engine._native" in modules
    assert (
        modules & {"engine._uring", "psutil", "tomllib", "statistics", "subprocess", "asyncio", "json"}
        == set()
    )
    own = {name for name in modules if name.split(".")[0] == "engine"}
    assert len(own) <= 12, sorted(own)
    assert len(modules) <= 60, sorted(modules)


def test_version() -> None:
    run = engine("--version")
    assert run.returncode == 0
    name, version = run.stdout.split()
    assert name == "engine"
    assert version[0].isdigit()


def test_help_lists_what_exists_and_nothing_else() -> None:
    words = engine("--help").stdout.split()
    assert {"bench", "run", "report", "compare", "doctor", "write-log"} <= set(words)
    assert {"serve", "img", "io", "nbd", "daemon", "graph", "top"} & set(words) == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "COMMAND"),
        (("frobnicate",), "invalid choice: 'frobnicate'"),
        (("bench", "--bs", "4q", "a.img"), "'4q' is not a size"),
        (("bench", "--iodepth", "0", "a.img"), "must be at least 1, not 0"),
        (("bench", "--iodepth", "many", "a.img"), "'many' is not a whole number"),
        (("bench", "--runtime", "0s", "a.img"), "must be more than 0"),
        (("bench", "--runtime", "soon", "a.img"), "'soon' is not a time"),
        (("bench", "--runtime", "1s", "--count", "5", "a.img"), "not allowed with"),
        (("bench", "--cpus", "1-0", "a.img"), "not a list of CPUs"),
        (("bench", "--rw", "random", "a.img"), "invalid choice: 'random'"),
        (("bench", "--via", "socket", "a.img"), "invalid choice: 'socket'"),
        (("bench", "--direct", "--buffered", "a.img"), "not allowed with"),
        (("bench", "--rwmixread", "101", "a.img"), "from 0 to 100"),
        (("bench",), "needs an IMAGE"),
        (("bench", "--null", "1g", "a.img"), "leave out IMAGE"),
        (("bench", "--null-latency", "20us", "a.img"), "goes with --null"),
        (("bench", "--null", "1g", "--cpus", "0,0", "--contexts", "1"), "2 CPUs for 1 context"),
        (("bench", "a.img", "a.img"), "names one image twice"),
        (("bench", "--image-opts", "raw"), "'raw' is not key=value"),
        (("bench", "--image-opts", "file.filename=a"), "names no driver"),
        (("bench", "--image-opts", "driver=raw,driver=file"), "given twice"),
        (("run",), "EXPERIMENT.toml"),
        (("run", "--resume", "a.toml"), "--resume needs the folder"),
        (("doctor", "--loud"), "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: tuple[str, ...], words: str) -> None:
    run = engine(*arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("engine: ")
    assert words in line


def test_a_reader_that_leaves_early_is_no_error() -> None:
    writer = subprocess.Popen([*COMMAND, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.close()
    _, errors = writer.communicate(timeout=60)
    assert errors == b""
    assert writer.returncode == 141


def test_doctor_prints_lines_and_json() -> None:
    text = engine("doctor")
    assert text.returncode == 0, text.stderr
    found = engine("doctor", "--json")
    checks = json.loads(found.stdout)
    names = {check["name"] for check in checks}
    assert {
        "kernel",
        "CPUs",
        "NUMA",
        "governor",
        "memlock",
        "io_uring",
        "threads",
        "steal",
        "engine",
    } <= names
    for check in checks:
        assert check["status"] in ("ok", "warn", "unknown")
        assert check["text"]
        assert (check["status"] == "warn") == bool(check["advice"]), check
        assert check["name"] in text.stdout
