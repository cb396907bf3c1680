"""How each program is started and how its output is read: engine, qemu-img, fio, the bare liburing loop,
and the C programs of bench/micro. Single-threaded.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import ROOT, BenchError, Figures, Settings, Side

MICRO = ROOT / "bench" / "micro"


# ---- engine ----


def engine_command() -> str:
    beside = Path(sys.executable).parent / "engine"
    found = str(beside) if beside.exists() else shutil.which("engine")
    if not found:
        raise BenchError("no engine command beside this Python nor in PATH: make run installs it")
    return found


@functools.cache
def engine_version() -> str:
    import engine

    build = engine.build_info()
    if not build.optimised or build.sanitized:
        raise BenchError(
            f"the engine is a debug or sanitized build ({build.flags}): its figures mean nothing"
        )
    return f"engine {build.version}, {build.compiler}, liburing {build.liburing}, clock {engine.clock_name()}"


def engine_output(text: str) -> Figures:
    """Layout of fio, with what fio has no word for under `engine`."""
    document = json.loads(text)
    own = document["engine"]
    jobs = document["jobs"]
    failed = sum(1 for job in jobs if job["error"])
    if failed or own["partial"]:
        raise ValueError("requests failed" if failed else "the run was cut short")
    directions = [job[way] for job in jobs for way in ("read", "write") if job[way]["total_ios"]]
    requests = sum(way["total_ios"] for way in directions)
    weighted = sum(way["lat_ns"]["mean"] * way["lat_ns"]["N"] for way in directions)
    counted = sum(way["lat_ns"]["N"] for way in directions)
    contexts = own["contexts"]
    return Figures(
        rate=own["iops"],
        requests=requests,
        latency_ns=weighted / counted if counted else None,
        details={
            "seconds": own["seconds"],
            "cpu_us_per_request": own["cpu"]["us_per_request"],
            "lock_wait_share": own["lock_wait"]["share"],
            "iodepth_level": jobs[0]["iodepth_level"],
            "percentiles_ns": [way["clat_ns"].get("percentile", {}) for way in directions],
            "contexts": [
                {
                    key: context[key]
                    for key in ("name", "effective_cpus", "backend", "backend_reason", "poll_max_ns")
                }
                | context["batches"]
                for context in contexts
            ],
        },
    )


def engine_bench(
    name: str,
    settings: Settings,
    *options: str,
    path: str,
    contexts: int = 1,
    processes: Sequence[Sequence[str]] = (),
) -> Side:
    """`engine bench` with these options; `processes` are further options of each of several at once."""
    base = (engine_command(), "bench", *options, "--output", "json")
    runtime = ("--runtime", f"{settings.seconds * 1000:.0f}ms")
    commands = tuple((*base, *each, *runtime) for each in processes) or ((*base, *runtime),)
    startup = (*base, *(processes[0] if processes else ()), "--count", str(contexts))
    return Side(name, engine_version(), commands, engine_output, startup, path)


# ---- qemu-img ----


@functools.cache
def qemu_img(major: str) -> tuple[tuple[str, ...], str]:
    """(how to start it, its version): "installed", or "debian13" from the root that debian13.sh makes."""
    if major == "installed":
        found = shutil.which("qemu-img")
        if not found:
            raise BenchError("no qemu-img in PATH: scripts/setup.sh bench installs it")
        start: tuple[str, ...] = (found,)
    else:
        root = Path(os.environ.get("ENGINE_PEERS_ROOT") or ROOT / "build" / "debian13").absolute()
        program, loaders = root / "usr/bin/qemu-img", sorted(root.glob("usr/lib*/ld-linux*.so*"))
        if not program.exists() or not loaders:
            raise BenchError(f"no Debian 13 root in {root}: bench/peers/debian13.sh makes it")
        libraries = next(root.glob("usr/lib/*-linux-gnu"))
        start = (str(loaders[0]), "--library-path", f"{libraries}:{root}/usr/lib", str(program))
    result = subprocess.run([*start, "--version"], capture_output=True, text=True, check=False)
    match = re.match(r"qemu-img version (\S+ \(.*?\))", result.stdout)
    if not match:
        raise BenchError(f"{start[-1]} --version: {(result.stderr or result.stdout).strip()}")
    return start, f"QEMU {match[1]}"


def qemu_img_bench(major: str, *options: str, count: int, path: str) -> Side:
    start, version = qemu_img(major)

    def read(text: str) -> Figures:
        match = re.search(r"Run completed in ([0-9.]+) seconds", text)
        if not match:
            raise ValueError("no line `Run completed`")
        seconds = float(match[1])
        return Figures(rate=count / seconds, requests=count, details={"seconds": seconds})

    command = (*start, "bench", "-c", str(count), *options)
    startup = (*start, "bench", "-c", "1", *options)
    return Side(f"{' '.join(version.split()[:2])}", version, (command,), read, startup, path)


def qemu_versions() -> tuple[tuple[str, ...], str]:
    """(which there are, newest first; a note where Debian 13's root was not made)."""
    try:
        qemu_img("debian13")
    except BenchError as error:
        return ("installed",), f"the newest QEMU is left out: {error}"
    return ("debian13", "installed"), ""


# ---- fio ----


def fio(name: str, settings: Settings, *options: str, path: str) -> Side:
    program = shutil.which("fio")
    if not program:
        raise BenchError("no fio in PATH: scripts/setup.sh bench installs it")
    version = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()

    def read(text: str) -> Figures:
        document = json.loads(text[text.index("{") :])
        job = document["jobs"][0]
        if job["error"]:
            raise ValueError(f"fio: error {job['error']}")
        way = job["read"] if job["read"]["total_ios"] else job["write"]
        details: dict[str, Any] = {"iodepth_level": job["iodepth_level"], "seconds": way["runtime"] / 1000}
        details["percentiles_ns"] = [way["lat_ns"].get("percentile", {})]
        return Figures(way["iops"], way["total_ios"], way["lat_ns"]["mean"], details)

    # Percentiles from submission on, as the engine counts; fio's clat would leave the submission out.
    base = (program, "--name=peer", "--output-format=json", "--lat_percentiles=1", *options)
    command = (*base, "--time_based", f"--runtime={settings.seconds * 1000:.0f}ms")
    startup = (*base, "--number_ios=1")
    return Side(name, version, (command,), read, startup, path)


# ---- programs of bench/micro ----


def micro_program(name: str) -> Path:
    """Builds bench/micro/NAME.c or .cc, optimised, when it or the library that this Python loads is newer."""
    folder = ROOT / "build" / "micro"
    folder.mkdir(parents=True, exist_ok=True)
    source = next(
        (MICRO / f"{name}{suffix}" for suffix in (".c", ".cc") if (MICRO / f"{name}{suffix}").exists()), None
    )
    if source is None:
        raise BenchError(f"bench/micro has no {name}")
    target = folder / name
    inputs = [source, *MICRO.glob("*.hh"), *(ROOT / "csrc" / "include" / "engine").glob("*.h")]
    if source.suffix == ".c":
        command = [os.environ.get("CC", "gcc"), "-std=c11", "-O2", "-o", str(target), str(source), "-luring"]
    else:
        library = engine_library()
        inputs.append(library)
        command = [
            os.environ.get("CXX", "g++"), "-std=c++20", "-O2", "-pthread", f"-I{ROOT}/csrc/include",
            "-o", str(target), str(source), str(library), f"-Wl,-rpath,{library.parent}",
        ]  # fmt: skip
    if not target.exists() or target.stat().st_mtime < max(each.stat().st_mtime for each in inputs):
        command[3:3] = ["-Wall", "-Wextra", "-Werror"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BenchError(f"{' '.join(command)}: {result.stderr.strip()}")
    return target


@functools.cache
def engine_library() -> Path:
    """The very library that `import engine` loads: what is measured is what is shipped."""
    import engine

    engine_version()
    engine.clock_name()
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith("libengine.so"):
            return Path(path)
    raise BenchError("import engine loads no libengine.so: the core is linked into the module")


def micro_output(text: str) -> Figures:
    document = json.loads(text)
    return Figures(document["iops"], document["requests"], document.get("latency_ns"), document)


def compiler_version(program: str) -> str:
    result = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return (result.stdout.splitlines() or [program])[0]


def micro(name: str, program: str, *arguments: str, path: str) -> Side:
    built = micro_program(program)
    language = "C" if (MICRO / f"{program}.c").exists() else "C++"
    compiler = os.environ.get("CC", "gcc") if language == "C" else os.environ.get("CXX", "g++")
    version = f"bench/micro/{program}, -O2, {compiler_version(compiler)}"
    return Side(name, version, ((str(built), *arguments),), micro_output, (), path)


def python_micro(name: str, program: str, *arguments: str, path: str) -> Side:
    """bench/micro/PROGRAM.py; its word `prepare` does everything but the requests, which is taken off."""
    command = (sys.executable, str(MICRO / f"{program}.py"), *arguments)
    version = f"bench/micro/{program}.py, Python {sys.version.split()[0]}, {engine_version()}"
    return Side(name, version, (command,), micro_output, (*command, "prepare"), path)


def python_reads(name: str, way: str, target: str, count: int, *cpu: str, path: str = "") -> Side:
    """bench/micro/python_reads.py: reads from Python, one way or another."""
    return python_micro(name, "python_reads", way, target, str(count), *cpu, path=path)
