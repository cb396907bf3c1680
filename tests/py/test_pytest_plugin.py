"""The fixture `storage_benchmark`, in a pytest of its own."""

from __future__ import annotations

import json
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


def test_the_fixture_measures(tmp_path: Path) -> None:
    (tmp_path / "test_storage.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "--benchmark-json=times.json", "-p", "no:cacheprovider"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    if "fixture 'storage_benchmark' not found" in run.stdout:
        pytest.fail("the package was installed before it had the plugin: install it again")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout
    times = json.loads((tmp_path / "times.json").read_text())["benchmarks"]
    assert [one["name"] for one in times] == ["test_reads", "test_a_node"]
    assert all(one["extra_info"]["iops"] > 0 for one in times)
    assert times[0]["stats"]["rounds"] == 3
