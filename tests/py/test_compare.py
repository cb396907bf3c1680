"""`engine compare`, `engine.load_results()`: what is read back, and what counts as a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine import cli
from engine.experiment.compare import compare, interval
from engine.experiment.errors import UserError
from engine.experiment.results import Results
from engine.experiment.runner import FORMAT
from engine.experiment.summary import summarise, usable

EXPERIMENT = """
[run]
title = "null nodes"
repeat = 3
[context.io0]
[blockdev.null]
driver = "null"
size = "1G"
[workload.rand]
node = "null"
contexts = ["io0"]
count = 2000
iodepth = 4
[sweep]
"workload.rand.iodepth" = [1, 8]
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "null.toml").write_text(EXPERIMENT)
    arguments = ["run", str(folder / "null.toml"), "-o", str(folder / "out"), "--allow-debug-build"]
    assert cli.main(arguments) == 0
    return folder / "out"


def test_tables_are_columns(measured: Path) -> None:
    results = engine.load_results(measured)
    points, runs = results.table(), results.table("runs")
    assert {len(column) for column in points.values()} == {2}
    assert len({len(column) for column in runs.values()}) == 1
    assert points["workload.rand.iodepth"] == [1, 8]
    # A run with much steal is made again, and stays.
    kept = [r for r, gone in zip(runs["repetition"], runs["discarded"], strict=True) if not gone]
    assert kept == [0, 0, 1, 1, 2, 2]
    assert np.array(runs["iops"]).min() > 0
    assert points["iops_min"][0] <= points["iops"][0] <= points["iops_max"][0]
    assert set(runs["requests"]) == {2000}
    with pytest.raises(ValueError, match="there are 'points', 'runs' and 'workloads'"):
        results.table("lines")


def with_rates(measured: Path, folder: Path, rates: dict[int, list[float]], **changes: Any) -> Path:
    """The same result with other rates of its points."""
    data = json.loads((measured / "result.json").read_text())
    first = {**data["runs"][0], "discarded": False, "marked": False}
    data["runs"] = []
    for point, values in rates.items():
        for repetition, rate in enumerate(values):
            record = json.loads(json.dumps(first["record"]))
            record["engine"]["iops"] = rate
            data["runs"].append({**first, "point": point, "repetition": repetition, "record": record})
        data["points"][point]["summary"] = summarise(usable(data["runs"], point))
    data |= changes
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(data))
    return folder


def test_a_result_is_as_fast_as_itself(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(measured), str(measured)]) == 0
    out = capsys.readouterr().out
    assert out.count("no difference beyond noise (") == 2
    assert "not the same" not in out


def test_what_differs_is_said_in_words(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = with_rates(measured, tmp_path / "a", {0: [100.0, 101, 102, 103, 104], 1: [50.0, 51, 49, 50, 52]})
    b = with_rates(measured, tmp_path / "b", {0: [90.0, 91, 90, 92, 91], 1: [50.0, 47, 53, 49, 51]})
    assert cli.main(["compare", str(a), str(b)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split(maxsplit=2)[2].startswith("B is 11 % slower (-1")
    assert "no difference beyond noise (" in lines[3]
    assert cli.main(["compare", str(a), str(b), "--fail-if-slower", "5%"]) == 1
    assert "FAILED: iodepth 1 is slower by 11 %" in capsys.readouterr().out
    assert cli.main(["compare", str(a), str(b), "--fail-if-slower", "12%"]) == 0
    assert cli.main(["compare", str(b), str(a), "--fail-if-slower", "5%"]) == 0


def test_few_runs_say_little(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = with_rates(measured, tmp_path / "a", {0: [100.0, 100], 1: [50.0, 50]})
    assert cli.main(["compare", str(a), str(a), "--fail-if-slower", "5%"]) == 1
    out = capsys.readouterr().out
    assert "2 and 2 runs are too few to say more" in out
    assert "FAILED: 2 points with fewer than 3 runs on either side" in out


def test_other_circumstances_are_named(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = json.loads((measured / "result.json").read_text())
    host = {**data["host"], "kernel": "Linux 1.0"}
    b = with_rates(measured, tmp_path / "b", {0: [1.0, 1, 1]}, host=host, points=data["points"][:1])
    assert cli.main(["compare", str(measured), str(b)]) == 0
    out = capsys.readouterr().out
    assert f"not the same: host kernel: {data['host']['kernel']} and Linux 1.0" in out
    assert "only in A: iodepth 8" in out


def test_the_interval_holds_the_truth() -> None:
    """Of two samples of one distribution, about 19 in 20 times."""
    chance = np.random.default_rng(3)
    hits = 0
    for seed in range(60):
        a, b = (list(chance.normal(1000, 20, 9)) for _ in range(2))
        found = interval(a, b, seed)
        assert found is not None
        hits += found[0] <= 1 <= found[1]
    assert hits >= 52
    assert interval([1.0, 1], [1.0, 1]) is None
    assert interval([0.0, 0, 0], [1.0, 1, 1]) is None


def test_discarded_runs_do_not_count(measured: Path) -> None:
    results = engine.load_results(measured)
    data = json.loads(json.dumps(results.data))
    next(run for run in data["runs"] if run["point"] == 0 and not run["discarded"])["discarded"] = True
    found = compare(results, Results(results.path, data))
    assert [len(difference.runs_b) for difference in found.differences] == [2, 3]


def test_what_is_no_result_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="No such file or directory: give a folder that"):
        engine.load_results(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match="is not a result of `engine run`: "):
        engine.load_results(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"format": FORMAT + "0"}))
    assert cli.main(["compare", str(tmp_path), str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"engine: {tmp_path}/result.json: is not a result")
    with pytest.raises(SystemExit):
        cli.main(["compare", "a", "b", "--fail-if-slower", "5"])
    assert "'5' is not a share such as 5%" in capsys.readouterr().err
