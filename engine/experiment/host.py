"""What machine this is, and what ran on it meanwhile: CPU time of this process, steal time of all CPUs.

Everything is read from /proc and /sys; where a container hides a file the field is None or empty.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEAL_LIMIT_PERCENT = 2.0  # of all CPU time, taken by other guests: the run is made again
OTHER_LIMIT_PERCENT = 5.0  # taken by other processes: the reader is told


def read_text(path: str) -> str | None:
    """The stripped contents of a file of /proc or /sys; None where it is missing or not readable."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def parse_cpu_list(text: str) -> list[int]:
    """CPU numbers from the kernel's list format: `0-3,8`. ValueError on anything else."""
    cpus: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = int(first), int(last) if dash else int(first)
        if low < 0 or high < low or high - low > 65536:
            raise ValueError(f"{part.strip()!r} is not a range of CPUs")
        cpus += range(low, high + 1)
    return cpus


def format_cpu_list(cpus: list[int] | tuple[int, ...]) -> str:
    """The kernel's list format: 0-3,8."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def online_cpus() -> list[int]:
    text = read_text("/sys/devices/system/cpu/online")
    try:
        return parse_cpu_list(text or "")
    except ValueError:
        return list(range(os.cpu_count() or 1))


def check_cpus(cpus: tuple[int, ...]) -> str | None:
    """Why a thread cannot be pinned to all of these CPUs; None: it can."""
    online = online_cpus()
    allowed = sorted(os.sched_getaffinity(0))
    for cpu in cpus:
        if cpu not in online:
            return f"CPU {cpu} does not exist: this host has {format_cpu_list(online)}"
        if cpu not in allowed:
            return f"CPU {cpu} is not for this process: it may use {format_cpu_list(allowed)}"
    return None


def cpu_model() -> str:
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model"):
            return " ".join(value.split())
    return os.uname().machine


def governors() -> list[str]:
    """The frequency governors in use; empty where the host sets the frequency (most virtual machines)."""
    found = {read_text(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor") for cpu in online_cpus()}
    return sorted(name for name in found if name)


def describe_host() -> dict[str, Any]:
    """For results: which machine, which kernel, which CPUs this process may use."""
    import sys

    system = os.uname()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    flags = next((x for x in (read_text("/proc/cpuinfo") or "").splitlines() if x.startswith("flags")), "")
    return {
        "hostname": system.nodename,
        "kernel": f"{system.sysname} {system.release}",
        "machine": system.machine,
        "cpu_model": cpu_model(),
        "cpus_online": online_cpus(),
        "cpus_allowed": sorted(os.sched_getaffinity(0)),
        "virtual_machine": "hypervisor" in flags.split(),
        "governors": governors(),
        "memory_bytes": memory,
        "python": sys.version.split()[0],
    }


@dataclass(frozen=True)
class HostLoad:
    """What all CPUs did between two moments, in CPU seconds."""

    steal: float
    busy: float  # without steal
    total: float

    @property
    def steal_percent(self) -> float:
        """What other guests took, of all CPU time."""
        return 100.0 * self.steal / self.total if self.total > 0 else 0.0

    def other_percent(self, own: float) -> float:
        """What other processes of this host took, where `own` CPU seconds were ours."""
        return 100.0 * max(0.0, self.busy - own) / self.total if self.total > 0 else 0.0


class HostMeter:
    """Measures the load of the host from its making on; the kernel counts in ticks of 10 ms."""

    def __init__(self) -> None:
        self._before = self._read()

    @staticmethod
    def _read() -> HostLoad:
        import psutil

        times = psutil.cpu_times()
        busy = times.user + times.nice + times.system + times.irq + times.softirq  # guests' time is in user
        return HostLoad(times.steal, busy, busy + times.steal + times.idle + times.iowait)

    def load(self) -> HostLoad:
        before, now = self._before, self._read()
        return HostLoad(now.steal - before.steal, now.busy - before.busy, now.total - before.total)


@dataclass(frozen=True)
class ProcessUsage:
    """What this process has used, all threads together."""

    user: float  # seconds
    system: float
    switches: int
    major_faults: int
    minor_faults: int

    @classmethod
    def now(cls) -> ProcessUsage:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        switches = usage.ru_nvcsw + usage.ru_nivcsw
        return cls(usage.ru_utime, usage.ru_stime, switches, usage.ru_majflt, usage.ru_minflt)

    def since(self, before: ProcessUsage) -> ProcessUsage:
        return ProcessUsage(
            self.user - before.user,
            self.system - before.system,
            self.switches - before.switches,
            self.major_faults - before.major_faults,
            self.minor_faults - before.minor_faults,
        )
