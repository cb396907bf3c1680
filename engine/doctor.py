"""`engine doctor`: what this host gives to a block I/O engine, and what to do where it falls short.

Reads /proc, /sys and the probes of the native core; what a container hides is said to be unknown, not wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from engine.experiment.host import (
    OTHER_LIMIT_PERCENT,
    STEAL_LIMIT_PERCENT,
    HostMeter,
    cpu_model,
    format_cpu_list,
    governors,
    online_cpus,
    parse_cpu_list,
    read_text,
)

_LOAD_SECONDS = 0.5
_MEMLOCK_WANTED = 64 << 20  # registered buffers of some contexts; a ring itself needs little


@dataclass(frozen=True)
class Check:
    """One line: `status` is "ok", "warn" or "unknown"; `advice` says what to do about a warning."""

    name: str
    status: str
    text: str
    advice: str = ""


def doctor(as_json: bool) -> int:
    """Prints all checks. Status 0 even with warnings: the engine works without what they ask for."""
    checks = examine()
    if as_json:
        import json

        print(json.dumps([asdict(check) for check in checks], indent=2))
        return 0
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:7}  {check.name:{width}}  {check.text}")
        if check.advice:
            print(f"{'':7}  {'':{width}}  → {check.advice}")
    warnings = sum(check.status == "warn" for check in checks)
    print()
    print("all well" if not warnings else f"{warnings} of {len(checks)} could be better")
    return 0


def examine() -> list[Check]:
    found: list[Check] = []
    for probe in _PROBES:
        found += probe()
    return found


# ---- the host ----


def check_kernel() -> list[Check]:
    system = os.uname()
    version = tuple(int(part) for part in system.release.split("-")[0].split(".")[:2] if part.isdigit())
    text = f"{system.sysname} {system.release} on {system.machine}"
    if system.sysname == "Linux" and version >= (6, 1):
        return [Check("kernel", "ok", text)]
    return [Check("kernel", "warn", text, "6.1 or newer has io_uring with deferred task run")]


def check_cpus() -> list[Check]:
    online, allowed = online_cpus(), sorted(os.sched_getaffinity(0))
    text = f"{len(online)} online ({format_cpu_list(online)}), {cpu_model()}"
    checks = [Check("CPUs", "ok", text)]
    if len(allowed) < len(online):
        wish = "give this process more CPUs (taskset, the container's cpuset) to pin contexts to them"
        checks.append(
            Check("affinity", "warn", f"this process may use only {format_cpu_list(allowed)}", wish)
        )
    isolated = read_text("/sys/devices/system/cpu/isolated")
    if isolated:
        checks.append(Check("isolated CPUs", "ok", isolated))
    quota = _cpu_quota()
    if quota is not None and quota < len(allowed):
        wish = "a quota stops pinned contexts in mid-run; measure without one"
        checks.append(Check("CPU quota", "warn", f"{quota:g} CPUs by the control group", wish))
    return checks


def _cpu_quota() -> float | None:
    """CPUs that the control group grants (cgroup v2); None: no limit, or not visible."""
    quota, _, period = (read_text("/sys/fs/cgroup/cpu.max") or "max").partition(" ")
    try:
        return int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None


def check_siblings() -> list[Check]:
    groups = set()
    for cpu in online_cpus():
        text = read_text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        if text is None:
            return [Check("siblings", "unknown", "this host does not say which CPUs share a core")]
        groups.add(text)
    shared = sorted(group for group in groups if len(parse_cpu_list(group)) > 1)
    if not shared:
        return [Check("siblings", "ok", "no two CPUs share a core, as far as the host says")]
    text = f"CPUs that share a core: {' '.join(shared[:8])}{' …' if len(shared) > 8 else ''}"
    return [Check("siblings", "ok", f"{text}; pin contexts to different cores")]


def check_numa() -> list[Check]:
    nodes = read_text("/sys/devices/system/node/online")
    if nodes is None:
        return [Check("NUMA", "unknown", "this host does not say")]
    numbers = parse_cpu_list(nodes)
    if len(numbers) == 1:
        return [Check("NUMA", "ok", "one node")]
    parts = [f"node {n}: CPUs {read_text(f'/sys/devices/system/node/node{n}/cpulist')}" for n in numbers]
    return [Check("NUMA", "ok", f"{len(numbers)} nodes ({'; '.join(parts)})")]


def check_governor() -> list[Check]:
    found = governors()
    if not found:
        return [Check("governor", "ok", "none: the frequency is not this host's to set")]
    if found == ["performance"]:
        return [Check("governor", "ok", "performance")]
    wish = "for steady figures: cpupower frequency-set -g performance"
    return [Check("governor", "warn", ", ".join(found), wish)]


def check_turbo() -> list[Check]:
    """Frequencies above the nominal one come and go with heat and with what the other cores do."""
    for path, on in (
        ("/sys/devices/system/cpu/intel_pstate/no_turbo", "0"),
        ("/sys/devices/system/cpu/cpufreq/boost", "1"),
    ):
        text = read_text(path)
        if text is None:
            continue
        if text == on:
            wish = f"for steady figures: echo {1 - int(on)} > {path}"
            return [Check("turbo", "warn", "on: frequencies depend on what the other cores do", wish)]
        return [Check("turbo", "ok", "off")]
    return [Check("turbo", "unknown", "this host does not say")]


def check_memlock() -> list[Check]:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return [Check("memlock", "ok", "unlimited")]
    text = f"{soft >> 10} KiB"
    if soft >= _MEMLOCK_WANTED:
        return [Check("memlock", "ok", text)]
    wish = "registered buffers need more: ulimit -l unlimited, or LimitMEMLOCK=infinity (systemd)"
    return [Check("memlock", "warn", text, wish)]


def check_load() -> list[Check]:
    meter = HostMeter()
    time.sleep(_LOAD_SECONDS)
    load = meter.load()
    over = f"over {_LOAD_SECONDS:g} s"
    steal = Check("steal", "ok", f"{load.steal_percent:.1f} % {over}")
    if load.steal_percent > STEAL_LIMIT_PERCENT:
        wish = "other guests take CPU time from this one: measure at another time"
        steal = replace(steal, status="warn", advice=wish)
    busy = Check("other load", "ok", f"{load.other_percent(0.0):.0f} % {over}")
    if load.other_percent(0.0) > OTHER_LIMIT_PERCENT:
        busy = replace(busy, status="warn", advice="other processes use the CPUs: measure on a quiet machine")
    return [steal, busy]


# ---- the engine ----


def check_backends() -> list[Check]:
    import engine

    checks = []
    for name in ("io_uring", "threads"):
        result = engine.probe_backend(name)
        if result.works:
            features = result.features.removeprefix(name).lstrip(":, ")
            told = features and features != "as asked"  # that is why the probe has it, and no feature
            checks.append(Check(name, "ok", f"works: {features}" if told else "works"))
        else:
            checks.append(Check(name, "warn", f"does not work: {result.reason}", _backend_advice(name)))
    return checks


def check_uring() -> list[Check]:
    """What the kernel's own io_uring has, whatever a context makes of it."""
    from engine import uring

    name = "io_uring features"
    try:
        found = uring.probe()
    except OSError as error:
        return [Check(name, "warn", str(error))]
    flags = ", ".join(found.setup_flags) or "no set-up flags"
    counts = f"{len(found.operations)} operations, {len(found.features)} features"
    text = f"{flags}; {counts} (engine.uring.probe() names them)"
    missing = [flag for flag in uring.SETUP_FLAGS if flag not in found.setup_flags]
    if not missing:
        return [Check(name, "ok", text)]
    return [Check(name, "warn", text, f"6.1 or newer has {', '.join(missing)} too")]


def _backend_advice(name: str) -> str:
    if name != "io_uring":
        return ""
    if (read_text("/proc/sys/kernel/io_uring_disabled") or "0") != "0":
        return "sysctl kernel.io_uring_disabled=0; until then contexts use threads"
    return "allow io_uring in the container's seccomp profile; until then contexts use threads"


def check_build() -> list[Check]:
    import engine

    build = engine.build_info()
    text = f"{build.version}, {build.compiler}, liburing {build.liburing}, {build.flags}"
    if build.optimised and not build.sanitized:
        return [Check("engine", "ok", text)]
    kind = "a sanitized build" if build.sanitized else "a debug build"
    return [Check("engine", "warn", f"{text}: {kind}", "measure with -Dbuildtype=release")]


def check_clock() -> list[Check]:
    import engine

    name = engine.clock_name()
    if name == "tsc":
        return [Check("clock", "ok", "time stamp counter")]
    wish = "no invariant time stamp counter here: each time stamp costs a call, latency figures include it"
    return [Check("clock", "warn", name, wish)]


_PROBES: tuple[Callable[[], list[Check]], ...] = (
    check_kernel,
    check_cpus,
    check_siblings,
    check_numa,
    check_governor,
    check_turbo,
    check_memlock,
    check_load,
    check_backends,
    check_uring,
    check_clock,
    check_build,
)
