"""The fixture `storage_benchmark`, in a pytest of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_reads(storage_benchmark, tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    measured = storage_benchmark(path, count=500, rounds=3, iodepth=4)
    assert measured.requests == 1500
    assert measured.iops > 0
    assert measured.latency.count == 1500

def test_a_node(storage_benchmark):
    storage_benchmark({"driver": "null", "size": "1M"}, rw="randwrite", count=500, rounds=2)

def test_a_file_that_is_not_there(storage_benchmark, tmp_path):
    with pytest.raises(OSError, match="No such file"):
        storage_benchmark(tmp_path / "none", count=1)
"""


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_storage.py").write_text(TESTS)
    # What a parallel run of these tests here tells its processes is not for that one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    run = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    if "fixture 'storage_benchmark' not found" in run.stdout:
        pytest.fail("the package was installed before it had the plugin: install it again")
    return run


def test_the_fixture_measures(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, "--benchmark-json=times.json")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout
    times = json.loads((tmp_path / "times.json").read_text())["benchmarks"]
    assert [one["name"] for one in times] == ["test_reads", "test_a_node"]
    assert all(one["extra_info"]["iops"] > 0 for one in times)
    assert times[0]["stats"]["rounds"] == 3


def test_where_benchmarks_are_disabled_one_round_counts(tmp_path: Path) -> None:
    run = run_pytest(tmp_path, "--benchmark-disable")
    assert "1 failed, 2 passed" in run.stdout, run.stdout + run.stderr
    assert "assert 500 == 1500" in run.stdout
