"""Recordings of fio itself: what it wrote is read, and a replay does what fio's own replay does."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import engine

pytestmark = pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed: apt install fio")


def fio(*options: str) -> dict[str, Any]:
    command = ["fio", "--name=a", "--output-format=json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    job: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return job


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4 << 20))
    return path


@pytest.mark.parametrize(
    "load",
    [
        "--rw=randrw --bs=4k --fsync=8 --number_ios=200",
        "--rw=randrw --bsrange=512-64k --bs_unaligned=0 --rwmixread=30 --fdatasync=5 --io_size=2m",
        "--rw=write --bs=64k --number_ios=40",
        "--rw=trimwrite --bs=64k --io_size=1m --ioengine=null",  # psync trims block devices alone
    ],
    ids=["mixed", "sizes", "sequential", "trim"],
)
@pytest.mark.parametrize("version", [2, 3])
def test_a_replay_does_what_fio_does(tmp_path: Path, image: Path, load: str, version: int) -> None:
    log = tmp_path / "fio.log"
    fio(f"--filename={image}", "--size=4m", f"--write_iolog={log}", *load.split())
    if version == 2:  # which this fio reads but no longer writes: without the times
        first, *lines = log.read_text().splitlines()
        assert first == "fio version 3 iolog"
        log.write_text("\n".join(["fio version 2 iolog", *(line.partition(" ")[2] for line in lines), ""]))
    theirs = fio(f"--read_iolog={log}", "--replay_no_stall=1", *(o for o in load.split() if "ioengine" in o))
    recording = engine.Recording.read(log)
    assert recording.timed == (version == 3)
    assert recording.files == (str(image),)
    with (
        engine.Engine() as eng,
        eng.open(driver="raw", filename=str(image), discard="unmap") as disk,
        eng.workload(disk, replay=recording, replay_speed="max", iodepth=1) as workload,
    ):
        workload.start()
        assert workload.wait(60)
        ours = workload.result()
    assert ours.errors == 0
    assert (ours.reads, ours.bytes_read) == (theirs["read"]["total_ios"], theirs["read"]["io_bytes"])
    assert (ours.writes, ours.bytes_written) == (theirs["write"]["total_ios"], theirs["write"]["io_bytes"])
    # Of a replay fio counts neither fdatasync nor trims.
    count = log.read_text().count
    assert ours.flushes == count(" sync ") + count(" datasync ")
    assert count(" sync ") == theirs["sync"]["total_ios"]
    assert (ours.discards, ours.bytes_discarded) == (count(" trim "), 65536 * count(" trim "))
    assert ours.reads + ours.writes + ours.discards > 10


def test_times_are_in_microseconds(tmp_path: Path, image: Path) -> None:
    """fio's manual does not say so: ten requests, one each tenth of a second, take most of a second."""
    log = tmp_path / "fio.log"
    load = ("--rw=randread", "--bs=4k", "--number_ios=10", "--rate_iops=10")
    job = fio(f"--filename={image}", "--size=4m", f"--write_iolog={log}", *load)
    recording = engine.Recording.read(log)
    assert len(recording) == 10
    assert 0.1 < recording.seconds <= job["job_runtime"] / 1000 + 1
