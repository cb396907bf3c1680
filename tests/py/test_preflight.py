"""Warnings before the first run: contexts in each other's way."""

from __future__ import annotations

from typing import Any

import pytest

from engine import doctor
from engine.experiment import preflight


def context(name: str, cpus: list[int] | None, numa: int = 0) -> dict[str, Any]:
    return {"name": name, "requested_cpus": cpus, "effective_cpus": cpus or [0, 1, 2, 3], "numa_node": numa}


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What /sys says; what is not here is not there."""
    made: dict[str, str] = {}
    monkeypatch.setattr(preflight, "read_text", made.get)
    monkeypatch.setattr(doctor, "read_text", made.get)
    return made


def test_contexts_on_cores_of_their_own_are_no_matter(files: dict[str, str]) -> None:
    assert preflight.placement_warnings([context("io0", [0]), context("io1", [1])]) == []


def test_siblings(files: dict[str, str]) -> None:
    files["/sys/devices/system/cpu/cpu0/topology/thread_siblings_list"] = "0,4"
    (line,) = preflight.placement_warnings([context("io0", [0]), context("io1", [4])])
    assert line.startswith("io0 and io1 are on CPUs 0 and 4, which share a core")


def test_one_cpu_for_two(files: dict[str, str]) -> None:
    (line,) = preflight.placement_warnings([context("io0", [3]), context("io1", [3])])
    assert line == "io0 and io1 share CPU 3: only one of them runs at a time"


def test_not_pinned(files: dict[str, str]) -> None:
    (line,) = preflight.placement_warnings([context("io0", None), context("io1", [1])])
    assert line.startswith("not pinned: io0:")


def test_far_apart(files: dict[str, str]) -> None:
    files["/sys/devices/system/node/node0/distance"] = "10 21"
    (line,) = preflight.placement_warnings([context("io0", [0], 0), context("io1", [9], 1)])
    assert line.startswith("contexts are on NUMA nodes 0, 1 (distance 21, 10 is near)")


def test_turbo(files: dict[str, str]) -> None:
    assert doctor.check_turbo()[0].status == "unknown"
    files["/sys/devices/system/cpu/intel_pstate/no_turbo"] = "0"
    (check,) = doctor.check_turbo()
    assert (
        check.status,
        check.advice.endswith("echo 1 > /sys/devices/system/cpu/intel_pstate/no_turbo"),
    ) == (
        "warn",
        True,
    )
    files["/sys/devices/system/cpu/intel_pstate/no_turbo"] = "1"
    assert doctor.check_turbo()[0].status == "ok"
    del files["/sys/devices/system/cpu/intel_pstate/no_turbo"]
    files["/sys/devices/system/cpu/cpufreq/boost"] = "1"
    assert doctor.check_turbo()[0].advice.endswith("echo 0 > /sys/devices/system/cpu/cpufreq/boost")


def test_what_doctor_warns_of_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = doctor.Check("governor", "warn", "powersave", "cpupower")
    for name in ("check_governor", "check_turbo", "check_memlock", "check_uring", "check_load"):
        result = [bad] if name == "check_governor" else [doctor.Check(name, "ok", "well")]
        monkeypatch.setattr(doctor, name, lambda found=result: found)
    assert preflight.warnings([context("io0", [0])]) == ["governor: powersave: cpupower"]
