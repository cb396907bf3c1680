"""Replays in experiments: the keys of a workload, what is said of wrong ones, and a run with its counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import engine
import engine.experiment
from engine.experiment.document import Document
from engine.experiment.errors import DocumentError
from engine.experiment.model import Setup
from engine.experiment.plan import Plan, make_plan

BASE = """\
[run]
repeat = 1
[context.io0]
[context.io1]
[blockdev.disk]
driver = "null"
size = "1M"
[device.vda]
node = "disk"
queues = ["io0", "io1"]
[workload.w]
device = "vda"
"""
LOG = """\
fio version 3 iolog
0 a read 0 4096
10000 a write 4096 8192
20000 a sync 0 0
40000 a read 65536 512
"""
TWO = LOG.replace("20000 a sync", "20000 b sync")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.log").write_text(LOG)
    (tmp_path / "two.log").write_text(TWO)
    (tmp_path / "bad.log").write_text(LOG + "50000 a read zero 512\n")
    (tmp_path / "untimed.log").write_text("fio version 2 iolog\na read 0 512\n")
    return tmp_path


def plan(text: str, quick: bool = False) -> Plan:
    return make_plan(Document("b.toml", BASE + text), quick=quick)


def test_the_recording_is_read_when_it_is_planned() -> None:
    setup = plan('replay = "a.log"\nreplay-speed = 2.0\n').points[0].setup
    (workload,) = setup.workloads
    assert workload.replay is not None
    assert workload.replay.operations == {"read": 2, "write": 1, "flush": 1, "discard": 0}
    assert len(workload.replay.sha256) == 64
    assert workload.writes
    assert setup.seconds == pytest.approx(0.02)
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup
    assert [(g.index, g.of) for g in setup.generators()] == [(0, 2), (1, 2)]


def test_reads_alone_open_the_node_read_only(folder: Path) -> None:
    (folder / "a.log").write_text("".join(LOG.splitlines(keepends=True)[:2]))
    setup = plan('replay = "a.log"\n').points[0].setup
    assert setup.nodes[0].options["read-only"] is True
    assert len(list(setup.generators())) == 1  # there is one operation


def test_how_long_is_known_or_not() -> None:
    assert not plan('replay = "a.log"\n').counted
    assert plan('replay = "a.log"\nreplay-speed = "max"\n').counted
    assert plan('replay = "untimed.log"\n').counted
    assert plan('replay = "a.log"\nruntime = "10ms"\n').points[0].setup.seconds == 0.01
    assert plan('replay = "a.log"\n', quick=True).points[0].setup.workloads[0].runtime == 0.2


def test_another_recording_is_another_plan(folder: Path) -> None:
    before = plan('replay = "a.log"\n').fingerprint
    assert plan('replay = "a.log"\n').fingerprint == before
    (folder / "a.log").write_text(LOG + "50000 a read 0 512\n")
    assert plan('replay = "a.log"\n').fingerprint != before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('replay = "none.log"', "replay: none.log: No such file or directory"),
        ('replay = "bad.log"', "replay: bad.log:6: offset: must be a whole number"),
        ('replay = "two.log"', "replay: two.log:4: file: 'b' is a second file beside 'a'"),
        ('replay = "two.log"\nreplay-file = "c"', "no operation on 'c'; there are some on 'a', 'b'"),
        ('replay = "a.log"\nrw = "read"', "rw: does not go with `replay`"),
        ('replay = "a.log"\nbs = 4096', "bs: does not go with `replay`"),
        ('replay = "a.log"\nrate-iops = 4', "rate-iops: does not go with `replay`"),
        ('replay = "a.log"\nreplay-speed = "fast"', "replay-speed: must be \"max\" or a factor"),
        ('replay = "a.log"\nreplay-speed = 0', "replay-speed: must be"),
        ('replay = "a.log"\nreplay-speed = true', "replay-speed: must be"),
        ('replay = "a.log"\nreplay-event = "C"', "replay-event: must be Q or D"),
        ('replay = "a.log"\nreplay-beyond = "clamp"', "replay-beyond: must be refuse or wrap"),
        ('replay = "untimed.log"\nreplay-speed = 1.0', 'replay-speed: untimed.log has no times'),
        ('runtime = "1s"\nreplay-speed = 2.0', "replay-speed: goes with `replay`"),
        ("", "needs `runtime`"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(text: str, says: str) -> None:
    with pytest.raises(DocumentError) as caught:
        plan(text + "\n")
    assert says in str(caught.value)
    assert str(caught.value).startswith("b.toml:")
    assert "\n" not in str(caught.value)


def test_a_run_says_what_was_done(folder: Path) -> None:
    text = BASE + 'replay = "a.log"\n[sweep]\n"workload.w.replay-speed" = [1, 2.5, "max"]\n'
    (folder / "b.toml").write_text(text)
    results = engine.experiment.run("b.toml")
    runs = [run for run in results.data["runs"] if not run["discarded"]]
    assert [run["record"]["engine"]["loop"] for run in runs] == [
        "open_loop",
        "open_loop",
        "closed_loop",
    ]
    for run in runs:
        (job,) = run["record"]["jobs"]
        assert (job["read"]["total_ios"], job["read"]["io_bytes"]) == (2, 4608)
        assert (job["write"]["total_ios"], job["write"]["io_bytes"]) == (1, 8192)
        assert (job["sync"]["total_ios"], job["sync"]["lat_ns"]["N"], job["trim"]["total_ios"]) == (1, 1, 0)
        assert job["job options"]["read_iolog"] == "a.log"
    assert runs[0]["record"]["engine"]["seconds"] >= 0.04
    assert "replay of a.log" in results._repr_html_()


def test_a_replay_is_traced_like_any_workload(folder: Path) -> None:
    (folder / "a.log").write_text(LOG)
    text = BASE.replace("repeat = 1", "repeat = 1\ntrace = 1")
    (folder / "b.toml").write_text(text + 'replay = "a.log"\nreplay-speed = "max"\n')
    traces = engine.experiment.run("b.toml").data["runs"][0]["record"]["engine"]["traces"]
    assert [(job["job"], job["traces"], job["incomplete"]) for job in traces["jobs"]] == [("w", 4, 0)]
    assert sorted(one["op"] for one in traces["examples"]) == ["flush", "read", "read", "write"]


def test_what_lies_beyond_the_disk_is_said_or_wrapped(folder: Path) -> None:
    (folder / "a.log").write_text(LOG + "40001 a write 1048576 512\n")
    text = BASE + 'replay = "a.log"\nreplay-speed = "max"\n'
    (folder / "b.toml").write_text(text)
    with pytest.raises(engine.experiment.UserError, match=r"a\.log:6: offset: ends at 1049088, beyond"):
        engine.experiment.run("b.toml")
    (folder / "b.toml").write_text(text + 'replay-beyond = "wrap"\n')
    results = engine.experiment.run("b.toml")
    assert results.data["runs"][0]["record"]["jobs"][0]["write"]["total_ios"] == 2


def test_two_workloads_replay_two_files_of_one_recording(folder: Path) -> None:
    text = BASE + 'replay = "two.log"\nreplay-file = "a"\n[workload.v]\nnode = "disk"\ncontexts = ["io0"]\n'
    (folder / "b.toml").write_text(text + 'replay = "two.log"\nreplay-file = "b"\n')
    first, second = engine.experiment.run("b.toml").data["runs"][0]["record"]["jobs"]
    assert (first["read"]["total_ios"], first["sync"]["total_ios"]) == (2, 0)
    assert (second["read"]["total_ios"], second["sync"]["total_ios"]) == (0, 1)


def test_a_recording_without_reads_and_writes(folder: Path) -> None:
    """Rates count reads and writes, so there are none; what was done is told all the same."""
    (folder / "a.log").write_text("fio version 3 iolog\n0 a sync 0 0\n10 a trim 0 4096\n")
    (folder / "b.toml").write_text(BASE + 'replay = "a.log"\n')
    results = engine.experiment.run("b.toml")
    assert results.table("points")["iops"] == [0]
    assert "1 flush, 1 discard" in results._repr_html_()
