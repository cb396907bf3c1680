"""A sweep that is killed, whenever that is, and resumed: the points and repetitions of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.experiment import runner
from engine.experiment.document import Document
from engine.experiment.plan import make_plan
from engine.experiment.processes import run_point
from engine.experiment.runner import Result, run_plan

COMMAND = [sys.executable, "-P", "-m", "engine.cli", "run", "--allow-debug-build", "small.toml", "-o", "out"]
SMALL = """\
[run]
title = "A small one"
repeat = 2
[context.io0]
[context.io1]
[blockdev.null]
driver = "null"
size = "64M"
[blockdev.file]
driver = "raw"
file.driver = "file"
file.filename = "made/random.img"
[image.random]
path = "made/random.img"
size = "8M"
[workload.w]
node = "null"
contexts = ["io0"]
iodepth = 8
count = 2000
[sweep]
"workload.w.node" = ["null", "file"]
[mark.two-processes]
run.processes = 2
workload.w.contexts = ["io0", "io1"]
"""
WANTED = [(repetition, point) for repetition in range(2) for point in range(4)]
KILLS = 3  # of each sweep


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept(data: Any) -> list[tuple[int, int]]:
    return [(run["repetition"], run["point"]) for run in data["runs"] if not run["discarded"]]


def read_whole(path: Path) -> Any:
    """What has the result's name is one at any moment, and each of its runs is there once."""
    data = json.loads(path.read_text(encoding="utf-8"))
    runs = kept(data)
    assert len(set(runs)) == len(runs)
    assert set(runs) <= set(WANTED)
    for point in data["points"]:
        own = [run for run in data["runs"] if run["point"] == point["index"] and not run["discarded"]]
        assert (point["summary"] or {"runs": 0})["runs"] == len(own)
    return data


def kill_after(process: subprocess.Popen[bytes], reader: int, records: int, delay: float) -> None:
    """So many runs, and then some time: kills it there."""
    with os.fdopen(reader) as pipe:
        for _ in range(records):
            pipe.readline()
        time.sleep(delay)
        process.kill()
        process.wait()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_sweep_resumes_to_the_same_points(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    path, before = folder / "out" / "result.json", []
    for _ in range(KILLS):
        reader, writer = os.pipe()
        process = subprocess.Popen(
            [*COMMAND, "--resume", "--progress-fd", str(writer)],
            pass_fds=(writer,),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(writer)
        kill_after(process, reader, chance.choice((0, 1, 1, 2)), chance.uniform(0, 0.8))
        if path.exists():
            data = read_whole(path)
            assert data["runs"][: len(before)] == before, "what was measured stays as it was"
            before = data["runs"]
    assert (
        subprocess.run([*COMMAND, "--resume"], capture_output=True, timeout=120, check=False).returncode == 0
    )
    data = read_whole(path)
    assert data["complete"] is True
    assert sorted(kept(data)) == WANTED
    assert [point["summary"]["runs"] for point in data["points"]] == [2, 2, 2, 2]
    assert (folder / "made" / "random.img").stat().st_size == 8 << 20
    assert sorted(each.name for each in (folder / "out").iterdir()) == ["picture.svg", "result.json"]


# Dies in the middle of writing the result, or right before it gets its name, at the n-th time.
DYING = """
import os, signal, sys
from engine.experiment import runner
from engine.cli import main
left, torn = int(sys.argv[1]), sys.argv[2] == "torn"
def replace(source, target):
    global left
    left -= 1
    if left == 0:
        if torn:
            os.truncate(source, os.stat(source).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename(source, target)
runner.os.replace = replace
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(("write", "how"), [(1, "torn"), (3, "torn"), (3, "unnamed")])
def test_killed_while_the_result_is_written(folder: Path, write: int, how: str) -> None:
    arguments = COMMAND[4:]
    dying = [sys.executable, "-P", "-c", DYING, str(write), how, *arguments]
    died = subprocess.run(dying, capture_output=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    path = folder / "out" / "result.json"
    assert path.exists() == (write > 1)
    if write > 1:
        assert len(read_whole(path)["runs"]) == write - 1
    assert (
        subprocess.run([*COMMAND, "--resume"], capture_output=True, timeout=120, check=False).returncode == 0
    )
    assert sorted(kept(read_whole(path))) == WANTED
    assert not path.with_suffix(".part").exists()


def test_workers_end_with_who_started_them(folder: Path) -> None:
    """One that went on alone would take CPU time from the runs of the sweep that is resumed."""
    (folder / "small.toml").write_text(SMALL.replace("count = 2000", 'runtime = "100s"'))
    process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    workers: list[psutil.Process] = []
    while not workers and time.monotonic() < deadline:
        workers = [one for one in parent.children() if len(one.threads()) > 1]  # its engine is open
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert workers
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert len(gone) == len(workers)
    assert not alive


def test_a_run_that_was_discarded_before_is_made_again_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the discarded run and the one instead of it: there are two in all, not three."""
    plan = make_plan(Document("small.toml", SMALL), repeat=1)
    real = run_point(plan.points[0].setup)
    real["engine"]["steal_percent"] = 5.0
    monkeypatch.setattr(runner, "run_point", lambda _: json.loads(json.dumps(real, default=str)))
    whole = Result.create(plan, folder / "out")
    run_plan(whole, _Silent())
    runs = [(run["point"], run["attempt"], run["discarded"], run["marked"]) for run in whole.data["runs"]]
    del whole.data["runs"][3:]
    whole.write()
    again = Result.resume(plan, folder / "out")
    assert again.data["runs"][-1]["discarded"]
    run_plan(again, _Silent())
    assert runs == [
        (run["point"], run["attempt"], run["discarded"], run["marked"]) for run in again.data["runs"]
    ]


def test_more_repetitions_are_asked_for_on_resuming(folder: Path) -> None:
    document = Document("small.toml", SMALL.replace('["null", "file"]', '["null"]'))
    run_plan(Result.create(make_plan(document, repeat=1), folder / "out"), _Silent())
    more = Result.resume(make_plan(document, repeat=2), folder / "out")
    assert len(more.wanted()) == 2
    run_plan(more, _Silent())
    assert more.data["plan"]["repeat"] == 2
    assert sorted(kept(more.data)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


class _Silent:
    def started(self, *_: object) -> None: ...

    def finished(self, *_: object) -> None: ...
