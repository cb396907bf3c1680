"""`engine doctor` where files are missing, as in a container, and where the host falls short."""

from __future__ import annotations

import resource
from types import SimpleNamespace

import pytest

import engine
from engine import doctor
from engine.experiment import host


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A made-up /proc and /sys: only what is put in exists."""
    contents: dict[str, str] = {}
    monkeypatch.setattr(host, "read_text", contents.get)
    monkeypatch.setattr(doctor, "read_text", contents.get)
    return contents


def test_nothing_to_read_is_unknown_not_an_error(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_LOAD_SECONDS", 0.0)
    checks = {check.name: check for check in doctor.examine()}
    assert files == {}
    assert checks["siblings"].status == "unknown"
    assert checks["NUMA"].status == "unknown"
    assert checks["governor"].status == "ok"
    assert checks["CPUs"].status == "ok"


def test_siblings_and_nodes_are_named(files: dict[str, str]) -> None:
    files["/sys/devices/system/cpu/online"] = "0-3"
    for cpu in range(4):
        files[f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = (
            "0,2" if cpu % 2 == 0 else "1,3"
        )
    files["/sys/devices/system/node/online"] = "0-1"
    files["/sys/devices/system/node/node0/cpulist"] = "0,2"
    files["/sys/devices/system/node/node1/cpulist"] = "1,3"
    assert "0,2 1,3" in doctor.check_siblings()[0].text
    assert "node 1: CPUs 1,3" in doctor.check_numa()[0].text


def test_a_quota_and_missing_cpus_are_warned_of(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files["/sys/devices/system/cpu/online"] = "0-7"
    files["/sys/fs/cgroup/cpu.max"] = "150000 100000"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 2})
    checks = {check.name: check for check in doctor.check_cpus()}
    assert "only 1-2" in checks["affinity"].text
    assert checks["CPU quota"].text.startswith("1.5 CPUs")
    assert all(check.advice for check in checks.values() if check.status == "warn")


def test_no_quota_is_no_line(files: dict[str, str]) -> None:
    files["/sys/fs/cgroup/cpu.max"] = "max 100000"
    assert "CPU quota" not in [check.name for check in doctor.check_cpus()]


def test_a_governor_other_than_performance_is_warned_of(files: dict[str, str]) -> None:
    files["/sys/devices/system/cpu/online"] = "0"
    files["/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"] = "powersave"
    (check,) = doctor.check_governor()
    assert (check.status, check.text) == ("warn", "powersave")
    files["/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"] = "performance"
    assert doctor.check_governor()[0].status == "ok"


@pytest.mark.parametrize(
    ("limit", "status"), [(64 << 10, "warn"), (1 << 30, "ok"), (resource.RLIM_INFINITY, "ok")]
)
def test_memlock(monkeypatch: pytest.MonkeyPatch, limit: int, status: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert doctor.check_memlock()[0].status == status


def test_io_uring_that_is_off_says_how_to_turn_it_on(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        engine, "probe_backend", lambda _: SimpleNamespace(works=False, features="", reason="EPERM")
    )
    files["/proc/sys/kernel/io_uring_disabled"] = "2"
    assert "kernel.io_uring_disabled=0" in doctor.check_backends()[0].advice
    files.clear()
    assert "seccomp" in doctor.check_backends()[0].advice


def test_an_old_kernel_and_a_debug_build_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    release = SimpleNamespace(sysname="Linux", release="5.10.0-8-amd64", machine="x86_64")
    monkeypatch.setattr("os.uname", lambda: release)
    assert doctor.check_kernel()[0].status == "warn"
    build = SimpleNamespace(
        version="0", compiler="c", liburing="2", flags="-O0", optimised=False, sanitized=False
    )
    monkeypatch.setattr(engine, "build_info", lambda: build)
    assert "a debug build" in doctor.check_build()[0].text


def test_steal_and_other_load_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([host.HostLoad(0.0, 0.0, 0.0), host.HostLoad(5.0, 30.0, 100.0)])
    monkeypatch.setattr(host.HostMeter, "_read", staticmethod(lambda: next(readings)))
    monkeypatch.setattr(doctor, "_LOAD_SECONDS", 0.0)
    steal, other = doctor.check_load()
    assert (steal.status, steal.text) == ("warn", "5.0 % over 0 s")
    assert (other.status, other.text) == ("warn", "30 % over 0 s")
