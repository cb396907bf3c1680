"""Before the first run: what of this host will make the figures worse than they need be, and what to do.

Warnings only: nothing is refused here, and each is kept in the result beside the figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from engine import doctor
from engine.experiment.host import parse_cpu_list, read_text

_NUMA = "/sys/devices/system/node"


def warnings(placement: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line each. `placement` is what `effective_placement` found; takes half a second."""
    probes = (
        doctor.check_governor,
        doctor.check_turbo,
        doctor.check_memlock,
        doctor.check_uring,
        doctor.check_load,
    )
    checks = [check for probe in probes for check in probe()]
    found = [
        f"{check.name}: {check.text}" + (f": {check.advice}" if check.advice else "")
        for check in checks
        if check.status == "warn"
    ]
    return [*found, *placement_warnings(placement)]


def placement_warnings(placement: Sequence[Mapping[str, Any]]) -> list[str]:
    """Contexts that are in each other's way, or far from each other."""
    found = []
    if floating := [one["name"] for one in placement if one["requested_cpus"] is None]:
        names = ", ".join(floating)
        found.append(f"not pinned: {names}: the kernel may move them in mid-run; give them `cpus`")
    pinned = [one for one in placement if one["requested_cpus"] is not None]
    for a, b in itertools.combinations(pinned, 2):
        if len(a["effective_cpus"]) != 1 or len(b["effective_cpus"]) != 1:
            continue
        (cpu_a,), (cpu_b,) = a["effective_cpus"], b["effective_cpus"]
        if cpu_a == cpu_b:
            found.append(f"{a['name']} and {b['name']} share CPU {cpu_a}: only one of them runs at a time")
        elif cpu_b in _siblings(cpu_a):
            found.append(
                f"{a['name']} and {b['name']} are on CPUs {cpu_a} and {cpu_b}, which share a core: each "
                "takes from the other; pin them to different cores"
            )
    nodes = {one["numa_node"] for one in pinned if one["numa_node"] >= 0}
    if len(nodes) > 1:
        far = max(_distance(a, b) for a, b in itertools.combinations(sorted(nodes), 2))
        found.append(
            f"contexts are on NUMA nodes {', '.join(map(str, sorted(nodes)))} (distance {far}, 10 is near): "
            "what they share costs more; pin them to one node, unless that is what is measured"
        )
    return found


def _siblings(cpu: int) -> list[int]:
    text = read_text(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return [] if text is None else parse_cpu_list(text)


def _distance(a: int, b: int) -> int:
    """As the firmware tells it; 0 where it does not."""
    distances = (read_text(f"{_NUMA}/node{a}/distance") or "").split()
    return int(distances[b]) if b < len(distances) else 0
