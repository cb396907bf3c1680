"""`engine bench`: its JSON against fio's own, its table, and one clear line for each bad wish."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import engine
from engine.cli import main
from engine.cli.arguments import parse
from engine.cli.bench import make_setup, parse_image_opts, refuse_debug_build
from engine.experiment.errors import UserError

COMMAND = [sys.executable, "-P", "-m", "engine.cli", "bench", "--allow-debug-build"]
SHORT = ["--runtime", "50ms", "--iodepth", "8"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False)


def record(*arguments: str) -> dict[str, Any]:
    run = bench("--output", "json", *arguments)
    assert run.returncode == 0, run.stderr
    data: dict[str, Any] = json.loads(run.stdout)
    return data


def refusal(*arguments: str) -> str:
    """The one line of a refusal."""
    run = bench(*SHORT, *arguments)
    assert run.returncode == 1, (run.stdout, run.stderr)
    (line,) = run.stderr.splitlines()
    assert line.startswith("engine: ")
    return line


def arguments(*words: str) -> Namespace:
    return parse(["bench", *words])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A fully written image of 2 MiB."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.write(os.urandom(2 << 20))
        os.fsync(file.fileno())
    return path


# ---- JSON ----


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed: apt install fio")
def test_the_json_has_fios_keys(image: Path, tmp_path: Path) -> None:
    copy = tmp_path / "fio.img"
    shutil.copyfile(image, copy)
    run = subprocess.run(
        f"fio --name=a --filename={copy} --rw=randrw --bs=4k --iodepth=8 --size=2m --ioengine=psync "
        "--runtime=1 --time_based --output-format=json",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = json.loads(run.stdout[run.stdout.index("{") :])
    ours = record(str(image), "--rw", "randrw", *SHORT)
    # Not measured: samples of bandwidth and IOPS over time, sizes of submissions, disk statistics.
    samples = {f"{name}_{part}" for name in ("bw", "iops") for part in ("min", "max", "mean", "samples")}
    samples |= {"bw_agg", "bw_dev", "iops_stddev"}
    assert set(theirs) - set(ours) <= {"disk_util", "global options"}
    job, fio = ours["jobs"][0], theirs["jobs"][0]
    assert set(fio) - set(job) == {"iodepth_submit", "iodepth_complete"}
    assert set(job) - set(fio) == set()
    for way in ("read", "write", "trim"):
        assert set(fio[way]) - set(job[way]) == samples
        assert set(job[way]) - set(fio[way]) == set()
    for way in ("read", "write"):
        assert set(job[way]["clat_ns"]) == set(fio[way]["clat_ns"])
        assert list(job[way]["clat_ns"]["percentile"]) == list(fio[way]["clat_ns"]["percentile"])
        assert set(job[way]["lat_ns"]) == set(fio[way]["lat_ns"])
    for group in ("iodepth_level", "latency_ns", "latency_us", "latency_ms"):
        assert list(job[group]) == list(fio[group])
    for way in ("read", "write"):
        for key, value in fio[way].items():
            if key in job[way] and not isinstance(value, dict):
                assert isinstance(job[way][key], (int, float)), key


def test_beside_it_stands_what_fio_has_no_word_for() -> None:
    data = record("--null", "1g", "--contexts", "2", "--seed", "7", *SHORT)
    beside = data["engine"]
    assert beside["loop"] == "closed_loop"
    assert [context["name"] for context in beside["contexts"]] == ["io0", "io1"]
    for context in beside["contexts"]:
        assert context["requested_cpus"] is None
        assert set(context["effective_cpus"]) <= set(range(os.cpu_count() or 1))
        assert context["backend"] in ("io_uring", "threads")
        assert context["backend_reason"]
        assert context["stats"]["turns"] > 0
        assert "operations_per_submit" in context["batches"]
    assert beside["cpu"]["us_per_request"] > 0
    assert 0 <= beside["lock_wait"]["share"] <= 1
    assert {lock["lock"] for lock in beside["locks"]} >= {"edges"}
    assert beside["build"]["version"] == engine.build_info().version
    assert beside["host"]["kernel"].startswith("Linux")
    assert beside["steal_percent"] >= 0
    assert beside["other_percent"] >= 0
    assert beside["clock"] in ("tsc", "clock_gettime")
    assert [generator["seed"] for generator in beside["generators"]] == [7, 8]
    assert beside["options"]["workloads"][0]["iodepth"] == 8


def test_figures_agree_with_each_other() -> None:
    data = record("--null", "1g", "--rw", "randrw", *SHORT)
    job, beside = data["jobs"][0], data["engine"]
    total = job["read"]["total_ios"] + job["write"]["total_ios"]
    assert total == beside["requests"] > 0
    assert job["read"]["io_bytes"] == 4096 * job["read"]["total_ios"]
    assert job["read"]["clat_ns"]["N"] == job["read"]["total_ios"]
    assert beside["iops"] == pytest.approx(job["read"]["iops"] + job["write"]["iops"])
    assert sum(job["iodepth_level"].values()) == pytest.approx(100.0, abs=0.01)
    percentiles = list(job["read"]["clat_ns"]["percentile"].values())
    assert percentiles == sorted(percentiles)
    assert job["read"]["clat_ns"]["min"] <= percentiles[0]
    assert percentiles[-1] <= job["read"]["clat_ns"]["max"]


def test_count_is_the_total_over_all_queues() -> None:
    data = record("--null", "64m", "--contexts", "2", "--queues", "3", "--count", "10001")
    assert data["jobs"][0]["read"]["total_ios"] == 10001
    assert [g["context"] for g in data["engine"]["generators"]] == ["io0", "io1", "io0"]


def test_an_open_loop_says_so() -> None:
    data = record("--null", "64m", "--rate-iops", "2000", "--runtime", "300ms")
    assert data["engine"]["loop"] == "open_loop"
    assert data["jobs"][0]["read"]["iops"] == pytest.approx(2000, rel=0.2)


def test_each_image_is_a_job(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    shutil.copyfile(image, other)
    data = record(str(image), str(other), *SHORT)
    assert [job["jobname"] for job in data["jobs"]] == [str(image), str(other)]
    assert all(job["read"]["total_ios"] > 0 for job in data["jobs"])


def test_node_and_queue_are_both_measured() -> None:
    through = record("--null", "1g", *SHORT)
    straight = record("--null", "1g", "--via", "node", *SHORT)
    assert through["engine"]["queues"][0]["completed"] > 0
    assert straight["engine"]["queues"] == []
    assert straight["jobs"][0]["read"]["total_ios"] > 0


def test_without_latency_there_are_no_percentiles() -> None:
    data = record("--null", "1g", "--no-latency", *SHORT)
    assert data["jobs"][0]["read"]["clat_ns"]["N"] == 0
    assert "percentile" not in data["jobs"][0]["read"]["clat_ns"]
    assert data["jobs"][0]["read"]["total_ios"] > 0


def test_what_was_written_is_verified(image: Path) -> None:
    data = record(str(image), "--rw", "randrw", "--verify", *SHORT)
    assert data["jobs"][0]["error"] == 0
    assert all(generator["verify_errors"] == 0 for generator in data["engine"]["generators"])


def test_the_generator_can_have_a_cpu_of_its_own() -> None:
    last = max(os.sched_getaffinity(0))
    data = record("--null", "1g", "--generator-cpus", str(last), *SHORT)
    contexts = {context["name"]: context for context in data["engine"]["contexts"]}
    assert contexts["gen0"]["effective_cpus"] == [last]
    assert data["engine"]["generators"][0]["generator_context"] == "gen0"


def test_a_lock_profile_has_histograms() -> None:
    data = record("--null", "1g", "--locking", "global", "--lock-profile", "--contexts", "2", *SHORT)
    (lock,) = [lock for lock in data["engine"]["locks"] if lock["lock"] == "global"]
    assert lock["acquisitions"] > 0
    assert lock["hold_ns"]["count"] > 0


# ---- the table ----


def test_the_table_says_what_matters(image: Path) -> None:
    run = bench(str(image), *SHORT)
    assert run.returncode == 0, run.stderr
    for words in ("randread of 4 KiB", "IOPS", "p99.9", "CPU/request", "depth achieved", "io0", "page cache"):
        assert words in run.stdout
    assert all(len(line) <= 140 for line in run.stdout.splitlines())


# ---- bad wishes ----


def test_an_image_with_holes_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.truncate(4 << 20)
    line = refusal(str(path))
    assert str(path) in line
    assert "a hole" in line
    assert "--allow-holes" in line
    assert record(str(path), "--allow-holes", *SHORT)["jobs"][0]["read"]["total_ios"] > 0


def test_an_unwritten_extent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "allocated.img"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        try:
            os.posix_fallocate(file.fileno(), 0, 4 << 20)
        except OSError:
            pytest.skip("this file system cannot allocate without writing")
        os.fsync(file.fileno())
    assert "at offset 1048576" in refusal(str(path))


def test_missing_directory_and_unknown_format(tmp_path: Path, image: Path) -> None:
    assert "No such file" in refusal(str(tmp_path / "none.img"))
    assert "irectory" in refusal(str(tmp_path))
    assert "qcow9" in refusal("--format", "qcow9", str(image))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(image: Path) -> None:
    image.chmod(0)
    assert "ermission denied" in refusal(str(image))


def test_an_image_that_someone_else_writes_is_refused(image: Path) -> None:
    whole_file = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with image.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, whole_file)
        line = refusal("--rw", "randwrite", str(image))
    assert "lock" in line.lower()
    assert image.name in line


def test_a_cpu_that_does_not_exist() -> None:
    assert "CPU 4000 does not exist" in refusal("--null", "1g", "--cpus", "4000")


def test_a_block_size_that_a_sector_does_not_divide() -> None:
    assert "512" in refusal("--null", "1g", "--bs", "1000")


def test_a_block_larger_than_the_disk() -> None:
    assert "1g" not in refusal("--null", "64k", "--bs", "1m")


def test_a_file_name_is_a_file_name(tmp_path: Path, image: Path) -> None:
    odd = tmp_path / "json:{a,b=c}.img"
    shutil.copyfile(image, odd)
    assert record(str(odd), *SHORT)["engine"]["nodes"][0]["filename"] == str(odd)
    escaped = str(odd).replace(",", ",,")
    options = f"driver=raw,file.driver=file,file.filename={escaped}"
    assert record("--image-opts", options, *SHORT)["jobs"][0]["jobname"] == str(odd)


def test_image_options_are_taken_apart() -> None:
    assert parse_image_opts("driver=raw,file.filename=a,,b=c") == {"driver": "raw", "file.filename": "a,b=c"}


def test_a_debug_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    build = SimpleNamespace(optimised=False, sanitized=False, flags="-O0")
    monkeypatch.setattr(engine, "build_info", lambda: build)
    with pytest.raises(UserError, match="a debug build"):
        refuse_debug_build(allowed=False)
    refuse_debug_build(allowed=True)
    assert main(["bench", "--null", "1g"]) == 1
    build.optimised = build.sanitized = True
    with pytest.raises(UserError, match="a sanitized build"):
        refuse_debug_build(allowed=False)


def refuse_io_uring() -> None:
    """A seccomp filter as containers have it: io_uring_setup answers EPERM. Holds until the process ends."""
    libc = ctypes.CDLL(None)
    load, jump_equal, give, setup = 0x20, 0x15, 0x06, 425
    rules = (
        (load, 0, 0, 0),
        (jump_equal, 0, 1, setup),
        (give, 0, 0, 0x50000 | errno.EPERM),
        (give, 0, 0, 0x7FFF0000),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
    program = struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code))
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc.prctl(22, 2, program)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def test_where_io_uring_is_refused_threads_take_over_and_say_why() -> None:
    command = [*COMMAND, "--null", "1g", *SHORT, "--output", "json"]
    run = subprocess.run(command, preexec_fn=refuse_io_uring, capture_output=True, text=True, check=True)
    (context,) = json.loads(run.stdout)["engine"]["contexts"]
    assert context["backend"] == "threads"
    assert "io_uring is refused" in context["backend_reason"]
    run = subprocess.run(
        [*command, "--aio", "io_uring"],
        preexec_fn=refuse_io_uring,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("engine: io_uring is refused here")
    assert len(run.stderr.splitlines()) == 1


# ---- topology ----


def test_cpus_and_queues_are_dealt_in_order() -> None:
    setup = make_setup(arguments("--null", "1g", "--cpus", "0,2-3", "--queues", "5"))
    assert [c.cpus for c in setup.contexts] == [(0,), (2,), (3,)]
    assert setup.devices[0].queues == ("io0", "io1", "io2", "io0", "io1")


def test_more_contexts_than_cpus_share_them() -> None:
    setup = make_setup(arguments("--null", "1g", "--cpus", "0,1", "--contexts", "3"))
    assert [c.cpus for c in setup.contexts] == [(0,), (1,), (0,)]


def test_direct_goes_to_the_file() -> None:
    (node,) = make_setup(arguments("--direct", "a.img")).nodes
    assert node.options["file.cache.direct"] is True
    assert node.buffered_file is None
    (node,) = make_setup(arguments("a.img")).nodes
    assert node.buffered_file == "a.img"
    assert node.options["read-only"] is True


# ---- Ctrl-C ----


@pytest.mark.parametrize("output", ["json", "table"])
def test_ctrl_c_prints_what_was_measured_so_far(output: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--null", "1g", "--runtime", "60s", "--output", output],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and psutil.Process(process.pid).num_threads() < 2:
        time.sleep(0.05)  # its engine is not open yet
    time.sleep(1)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert time.monotonic() - started < 5
    assert errors.splitlines() == ["engine: stopped by Ctrl-C; the figures are of the part that ran"]
    if output == "json":
        data = json.loads(out)
        assert data["engine"]["partial"] is True
        assert data["jobs"][0]["read"]["total_ios"] > 0
    else:
        assert "PARTIAL" in out
