"""`engine run` for real, in small: result file, picture, resume, two processes, discarded runs, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from engine.cli.progress import Progress
from engine.experiment import runner
from engine.experiment.document import Document
from engine.experiment.errors import UserError
from engine.experiment.plan import Plan, make_plan
from engine.experiment.processes import run_point
from engine.experiment.runner import Result, run_plan

COMMAND = [sys.executable, "-P", "-m", "engine.cli", "run", "--allow-debug-build"]
SMALL = """\
[run]
title = "A small one"
repeat = 2
warmup = "10ms"
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
size = "1M"
preload = true
[device.vda]
node = "null"
queues = ["io0"]
[workload.w]
device = "vda"
iodepth = 8
runtime = "50ms"
[sweep]
"device.vda.node" = ["null", "file"]
"device.vda.queues" = [["io0"], ["io0", "io1"]]
[mark.two-processes]
run.processes = 2
"device.vda.queues" = ["io0", "io1"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the experiment `small.toml` in it."""
    (tmp_path / "small.toml").write_text(SMALL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def engine_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False)


def small_plan(**options: Any) -> Plan:
    return make_plan(Document("small.toml", SMALL.replace('["null", "file"]', '["null"]')), **options)


class Silent:
    def started(self, *_: object) -> None: ...

    def finished(self, *_: object) -> None: ...


def test_a_plan_runs_to_its_end(folder: Path) -> None:
    run = engine_run("small.toml", "-o", "out")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    for words in ("A small one", "6 points", "12 runs", "io0 runs on CPU", "two processes", "note: "):
        assert words in run.stdout
    data = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))
    assert data["complete"] is True
    assert len([r for r in data["runs"] if not r["discarded"]]) == 12
    assert data["experiment"]["text"] == SMALL
    assert data["host"]["cpus_online"]
    assert data["build"]["version"]
    assert [place["name"] for place in data["placement"]] == ["io0", "io1"]
    for point in data["points"]:
        summary = point["summary"]
        assert summary["runs"] == 2
        assert summary["iops"]["min"] <= summary["iops"]["median"] <= summary["iops"]["max"]
        assert summary["cpu_us_per_request"]["median"] > 0
    ElementTree.parse(folder / "out" / "picture.svg")


def test_the_plan_is_printed_before_anything_is_done(folder: Path) -> None:
    run = engine_run("small.toml", "--plan")
    assert run.returncode == 0
    assert "6 points" in run.stdout
    assert not (folder / "made").exists()
    assert not (folder / "results").exists()


def test_quick_says_that_it_is_not_for_quoting(folder: Path) -> None:
    run = engine_run("small.toml", "--quick", "-o", "out")
    assert run.returncode == 0, run.stderr
    assert "6 runs" in run.stdout
    assert "do not quote" in run.stdout
    assert json.loads((folder / "out" / "result.json").read_text())["quick"] is True


def test_a_result_is_never_overwritten(folder: Path) -> None:
    assert engine_run("small.toml", "--quick", "-o", "out").returncode == 0
    run = engine_run("small.toml", "--quick", "-o", "out")
    assert run.returncode == 1
    assert run.stderr.startswith("engine: out: holds a result already")


def test_a_mistake_in_the_file_is_one_line_with_its_place(folder: Path) -> None:
    (folder / "small.toml").write_text(SMALL.replace('device = "vda"', 'device = "vdb"'))
    run = engine_run("small.toml")
    assert (run.returncode, run.stdout) == (1, "")
    (line,) = run.stderr.splitlines()
    assert line.startswith("engine: small.toml:22: workload.w.device: there is no device")
    assert "No such file" in engine_run("none.toml").stderr


def test_a_cpu_that_does_not_exist_is_found_before_the_first_run(folder: Path) -> None:
    (folder / "small.toml").write_text(SMALL.replace("[context.io1]", "[context.io1]\ncpus = [4000]"))
    run = engine_run("small.toml", "-o", "out")
    assert run.returncode == 1
    assert run.stderr.startswith("engine: small.toml:7: context.io1.cpus: CPU 4000 does not exist")


def test_two_processes_have_an_engine_each() -> None:
    (mark,) = [point for point in small_plan().points if point.mark]
    record = run_point(mark.setup)
    contexts = record["engine"]["contexts"]
    assert [(c["name"], c["process"]) for c in contexts] == [("io0", 0), ("io1", 1)]
    assert record["engine"]["processes"] == 2
    parts = [g["reads"] for g in record["engine"]["generators"]]
    assert all(part > 0 for part in parts)
    assert record["jobs"][0]["read"]["total_ios"] == sum(parts)
    assert record["jobs"][0]["read"]["clat_ns"]["N"] == sum(parts)


def test_an_error_in_a_worker_reaches_the_user(folder: Path) -> None:
    text = SMALL.replace(
        "[blockdev.file]", '[blockdev.gone]\ndriver = "file"\nfilename = "gone.img"\n[blockdev.file]'
    )
    text = text.replace('["null", "file"]', '["gone"]')
    plan = make_plan(Document("small.toml", text))
    with pytest.raises(UserError, match=r"gone\.img"):
        run_point(plan.points[0].setup)


def test_an_interrupted_plan_goes_on_where_it_stopped(folder: Path) -> None:
    plan = small_plan()
    result = Result.create(plan, folder / "out")
    stopper = Silent()
    count = 0

    def stop_after_two(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    stopper.finished = stop_after_two  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run_plan(result, stopper)
    again = Result.resume(plan, folder / "out")
    assert again.data["complete"] is False
    assert len(again.wanted()) == 6 - 2
    run_plan(again, Silent())
    assert again.data["complete"] is True
    kept = [(r["repetition"], r["point"]) for r in again.data["runs"] if not r["discarded"]]
    assert sorted(kept) == [(n, p) for n in range(2) for p in range(3)]


def test_another_plan_is_not_resumed(folder: Path) -> None:
    Result.create(small_plan(), folder / "out").write()
    with pytest.raises(UserError, match="of another plan"):
        Result.resume(small_plan(quick=True), folder / "out")
    (folder / "out" / "result.json").write_text("{")
    with pytest.raises(UserError, match="is not a result"):
        Result.resume(small_plan(), folder / "out")


@pytest.mark.parametrize(("second", "marked"), [(0.5, False), (9.0, True)])
def test_a_run_with_steal_is_made_again_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, second: float, marked: bool
) -> None:
    plan = small_plan(repeat=1)
    real = run_point(plan.points[0].setup)
    steal = iter([5.0, second, 0.0, 0.0])

    def disturbed(_: object) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(json.dumps(real, default=str))
        record["engine"]["steal_percent"] = next(steal)
        return record

    monkeypatch.setattr(runner, "run_point", disturbed)
    result = Result.create(plan, folder / "out")
    run_plan(result, Silent())
    first, again = result.data["runs"][:2]
    assert (first["discarded"], first["attempt"]) == (True, 1)
    assert (again["discarded"], again["marked"], again["attempt"]) == (False, marked, 2)
    assert result.data["points"][0]["summary"]["runs"] == 1
    assert result.data["points"][0]["summary"]["marked"] == int(marked)


def test_ctrl_c_keeps_what_was_measured(folder: Path) -> None:
    long = SMALL.replace('runtime = "50ms"', 'runtime = "400ms"').replace("repeat = 2", "repeat = 50")
    (folder / "small.toml").write_text(long)
    process = subprocess.Popen(
        [*COMMAND, "small.toml", "-o", "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    path = folder / "out" / "result.json"
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert errors.startswith("engine: stopped by Ctrl-C; go on with: engine run small.toml --resume -o out")
    assert len(errors.splitlines()) == 1
    assert "did not run to its end" in out
    data = json.loads(path.read_text())
    assert data["complete"] is False
    assert data["runs"]


def test_progress_on_a_descriptor_is_one_record_a_run(folder: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as pipe:
        run = subprocess.run(
            [*COMMAND, "small.toml", "--quick", "-o", "out", "--progress-fd", str(writer)],
            capture_output=True,
            pass_fds=(writer,),
            timeout=120,
            check=False,
        )
        os.close(writer)
        records = [json.loads(line) for line in pipe]
    assert run.returncode == 0
    assert [record["done"] for record in records] == [1, 2, 3, 4, 5, 6, 6]
    assert {record["total"] for record in records} == {6}
    assert [record["state"] for record in records[-2:]] == ["running", "done"]
    assert records[-1]["error"] is None
    assert "not open" in engine_run("small.toml", "-o", "other", "--progress-fd", "77").stderr


def test_a_signal_prints_one_record(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress(None, None) as progress:
        progress.started(3, 12, small_plan().points[0])
        os.kill(os.getpid(), signal.SIGUSR1)
    record = json.loads(capfd.readouterr().err)
    assert (record["job"], record["done"], record["total"], record["state"]) == ("run", 3, 12, "running")
