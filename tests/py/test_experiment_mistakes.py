"""Experiment files with a mistake in them: one line that names file, line and key, and says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import cli

GOOD = """\
[run]
title = "x"
repeat = 1
[context.io0]
[blockdev.null]
driver = "null"
size = "64M"
[device.vda]
node = "null"
queues = ["io0"]
[workload.w]
device = "vda"
rw = "randrw"
count = 100
[sweep]
"workload.w.iodepth" = [1, 4]
"""
FILE_NODE = """\
[blockdev.f]
driver = "raw"
file.driver = "file"
file.filename = "gone.img"
"""


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["run", "bad.toml", *arguments, "--allow-debug-build"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("repeat = 1", "repeat =", "3: not valid TOML: Invalid value"),
        ("[sweep]", "[workload.w]\n[sweep]", "15: not valid TOML: Cannot declare [workload.w] twice"),
        ("repeat = 1", 'repeat = "many"', "3: run.repeat: must be a whole number, not 'many'"),
        ("repeat = 1", "repeats = 1", "3: run.repeats: there is no key 'repeats'; did you mean 'repeat'?"),
        (
            "[context.io0]",
            "[contest.io0]",
            "4: contest: there is no table 'contest'; did you mean 'context'?",
        ),
        (
            'driver = "null"',
            'driver = "nil"',
            "6: blockdev.null.driver: this build has no driver 'nil'; it has",
        ),
        ("size =", "sise =", "7: blockdev.null.sise: driver 'null' has no option 'sise'; it has"),
        ('["io0"]', '"io0"', '10: device.vda.queues: must be a list of names such as ["io0", "io1"]'),
        (
            '["io0"]',
            '["io1"]',
            "10: device.vda.queues: there is no context 'io1' in this file; there is io0",
        ),
        ('["io0"]', '["x"]', "10: device.vda.queues: there is no context 'x' in this file; there is io0"),
        (
            "count = 100",
            "runtime = 5",
            '14: workload.w.runtime: must be a time with its unit such as "5s", not 5',
        ),
        ("count = 100", "rw = 1", "14: not valid TOML: Cannot overwrite a value"),
        ("[1, 4]", '[1, "four"]', "16: workload.w.iodepth: must be a whole number, not 'four'"),
        ("[1, 4]", "4", "16: sweep: workload.w.iodepth: must be a list of values to try, or a range"),
        ("[1, 4]", "[]", "16: sweep: workload.w.iodepth: must be a list of values to try, or a range"),
        ("[1, 4]", '"9..1 in 3 steps"', "16: sweep: workload.w.iodepth: '9..1 in 3 steps' must go from"),
        (
            "w.iodepth",
            "v.iodepth",
            "16: workload.v.iodepth: there is no workload 'v' in this file; there is w",
        ),
        ("w.iodepth", "w.idepth", "16: workload.w.idepth: there is no key 'idepth'; did you mean 'iodepth'?"),
        (
            "[sweep]",
            "[target]\npercentile = 98\n[sweep]",
            "16: target.percentile: must be 50 or 99 or 99.9, not '98'",
        ),
        (
            "[sweep]",
            '[labels]\nfive = "5"\n[sweep]',
            "16: labels.five: no swept value is written so; there is 1, 4",
        ),
    ],
)
def test_before_anything_is_done(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, line: str
) -> None:
    assert GOOD.count(old) >= 1
    (folder / "bad.toml").write_text(GOOD.replace(old, new, 1))
    assert said(capsys, "--plan").startswith(f"engine: bad.toml:{line}")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            '"64M"',
            '"64Q"',
            "7: blockdev.null.size: driver null: option 'size' = '64Q' is not a size such as 64k",
        ),
        (
            '"64M"',
            '"64M"\nread-only = "maybe"',
            "8: blockdev.null.read-only: driver null: option 'read-only'",
        ),
        (
            "count =",
            'offset = "1G"\ncount =',
            "11: workload.w.length: a workload of blocks of 4096 bytes at offset",
        ),
        ("count =", 'bs = "3000"\ncount =', "14: workload.w.bs: "),
        ("[1, 4]", "[1, 100000]", "16: workload.w.iodepth: at iodepth 100000: iodepth: must be"),
        (
            "[sweep]",
            f'{FILE_NODE}[sweep]\n"device.vda.node" = ["f"]',
            "18: blockdev.f.file.filename: file 'gone.img': cannot open it for writing: No such file",
        ),
        (
            "[sweep]",
            '[image.i]\npath = "/proc/none/x.img"\nsize = "1M"\n[sweep]',
            "16: image.i.path: /proc/none: No such file or directory",
        ),
        (
            "[sweep]",
            '[image.i]\npath = "."\nsize = "1M"\n[sweep]',
            "16: image.i.path: .: is not a regular file",
        ),
    ],
)
def test_what_only_the_engine_knows(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, line: str
) -> None:
    (folder / "bad.toml").write_text(GOOD.replace(old, new, 1))
    assert said(capsys, "-o", "out").startswith(f"engine: bad.toml:{line}")


def test_what_is_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = GOOD.replace("[sweep]", '[target]\nlatency = "1ms"\npercentile = 99\n[labels]\n1 = "one"\n[sweep]')
    (folder / "good.toml").write_text(good)
    assert cli.main(["run", "good.toml", "-o", "out", "--allow-debug-build"]) == 0
    assert "one" in capsys.readouterr().out
