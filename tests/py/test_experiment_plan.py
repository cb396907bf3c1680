"""Sweeps, marks, the order of runs, --quick; and the experiment that `make run` is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.experiment.document import Document
from engine.experiment.errors import DocumentError
from engine.experiment.model import Setup
from engine.experiment.plan import Plan, make_plan

BASE = """\
[run]
repeat = 2
[context.io0]
[context.io1]
[blockdev.small]
driver = "null"
size = "1M"
[blockdev.large]
driver = "null"
size = "1G"
[device.vda]
node = "small"
queues = ["io0"]
[workload.w]
device = "vda"
runtime = "1s"
"""
BIG_LOCK = Path(__file__).parents[2] / "bench" / "experiments" / "big-lock.toml"


def plan(text: str, repeat: int | None = None, quick: bool = False) -> Plan:
    return make_plan(Document("b.toml", BASE + text), repeat, quick)


def test_without_a_sweep_there_is_one_point() -> None:
    made = plan("")
    assert len(made.points) == 1
    assert len(list(made.runs())) == 2


def test_the_sweep_is_a_cross_product() -> None:
    made = plan('[sweep]\n"engine.locking" = ["global", "per-node"]\n"workload.w.iodepth" = [1, 8, 64]\n')
    found = [(p.setup.engine.locking, p.setup.workloads[0].iodepth) for p in made.points]
    assert found == [(lock, depth) for lock in ("global", "per-node") for depth in (1, 8, 64)]
    assert len({point.title for point in made.points}) == 6


def test_bare_dotted_keys_sweep_too() -> None:
    assert len(plan("[sweep]\nworkload.w.iodepth = [1, 2, 3]\n").points) == 3


def test_contexts_that_a_point_does_not_use_are_not_created() -> None:
    made = plan('[sweep]\n"device.vda.queues" = [["io0"], ["io0", "io1"]]\n')
    assert [[c.name for c in p.setup.contexts] for p in made.points] == [["io0"], ["io0", "io1"]]
    assert [p.title for p in made.points] == ["1 context", "2 contexts"]


def test_equal_numbers_of_contexts_are_told_apart_by_name() -> None:
    made = plan('[sweep]\n"device.vda.queues" = [["io0"], ["io1"]]\n')
    assert [p.title for p in made.points] == ["io0", "io1"]


def test_a_mark_stands_beside_the_product_of_what_it_leaves_alone() -> None:
    made = plan(
        '[sweep]\n"device.vda.node" = ["small", "large"]\n"engine.locking" = ["global", "per-node"]\n'
        '[mark.two-processes]\nrun.processes = 2\n"engine.locking" = "per-node"\n'
        '"device.vda.queues" = ["io0", "io1"]\n'
    )
    marks = [point for point in made.points if point.mark]
    assert len(made.points) == 6
    assert [(p.setup.devices[0].node, p.setup.processes) for p in marks] == [("small", 2), ("large", 2)]
    assert [p.title for p in marks] == ["small · two processes", "large · two processes"]


def test_repetitions_are_interleaved() -> None:
    order = [(n, p.index) for n, p in plan('[sweep]\n"workload.w.iodepth" = [1, 2]\n').runs()]
    assert order == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_labels_replace_values() -> None:
    made = plan('[sweep]\n"device.vda.node" = ["small", "large"]\n[labels]\nsmall = "a small one"\n')
    assert [p.title for p in made.points] == ["a small one", "large"]


def test_quick_is_one_short_repetition_and_repeat_overrides() -> None:
    made = plan("", quick=True)
    assert (made.repeat, made.points[0].setup.workloads[0].runtime) == (1, 0.2)
    assert plan("", repeat=7).repeat == 7
    assert plan("", repeat=4, quick=True).repeat == 4


def test_the_fingerprint_tells_plans_apart_but_not_repetitions() -> None:
    assert plan("").fingerprint == plan("", repeat=9).fingerprint
    assert plan("").fingerprint != plan("", quick=True).fingerprint


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[sweep]\n"engine.locking" = "global"\n', 18, "must be a list"),
        ('[sweep]\n"engine.locking" = []\n', 18, "must be a list"),
        ('[sweep]\n"engine.locking" = ["global", "none"]\n', 18, "per-node or global"),
        ('[sweep]\n"workload.x.iodepth" = [1]\n', 18, "no workload 'x' in this file"),
        ('[sweep]\n"workloads.w.iodepth" = [1]\n', 18, "did you mean 'workload'"),
        ('[sweep]\n"workload.w.iodeth" = [1]\n', 18, "did you mean 'iodepth'"),
        ('[sweep]\n"blockdev.small" = ["null"]\n', 18, "whole table"),
        ('[sweep]\n"image.a.size" = ["1M"]\n', 18, "no table 'image'"),
        ('[sweep]\n"run.repeat" = [1, 2]\n', 17, "cannot be swept"),
        ("[mark.m]\n", 17, "settings of its own"),
        ("[mark.m]\nrun.processes = 2\n", 18, "need as many queues"),
        ("[labels]\na = 1\n", 18, "must be a text"),
    ],
)
def test_a_mistake_in_the_sweep_names_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(DocumentError) as caught:
        plan(text)
    assert caught.value.line == line, str(caught.value)
    assert words in str(caught.value)


def test_generators_are_dealt_over_processes_without_loss() -> None:
    text = (
        '[context.io2]\n[device.vdb]\nnode = "small"\nqueues = ["io0", "io1", "io2"]\n'
        '[workload.x]\ndevice = "vdb"\ncount = 1000\nseed = 5\nrate-iops = 10\n'
        "[sweep]\nrun.processes = [1]\n"
    )
    (point,) = plan(text).points
    alone = [g for g in point.setup.generators() if g.workload.name == "x"]
    assert [g.count for g in alone] == [334, 333, 333]
    assert sum(g.rate_iops for g in alone) == 10
    assert [g.seed for g in alone] == [5, 6, 7]
    assert [g.target for g in alone] == [0, 1, 2]


def test_two_processes_share_the_queues_and_use_their_own_index() -> None:
    text = '[sweep]\n"device.vda.queues" = [["io0", "io1"]]\nrun.processes = [2]\n'
    setup = plan(text).points[0].setup
    for process, context in enumerate(("io0", "io1")):
        (generator,) = setup.generators(process)
        assert (generator.context, generator.target, generator.seed) == (context, 0, 1 + process)


def test_fewer_requests_than_generators_never_means_endless() -> None:
    text = '[sweep]\n"device.vda.queues" = [["io0", "io1"]]\n"workload.w.count" = [1]\n'
    (generator,) = plan(text).points[0].setup.generators()
    assert generator.count == 1


def test_a_setup_survives_json() -> None:
    setup = Document.read(str(BIG_LOCK)).setup()
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup


def test_the_big_lock_experiment_is_what_the_readme_says() -> None:
    made = make_plan(Document.read(str(BIG_LOCK)))
    points = [p for p in made.points if not p.mark]
    marks = [p for p in made.points if p.mark]
    found = {(p.settings["device.vda.node"], p.setup.engine.locking, len(p.setup.contexts)) for p in points}
    assert len(found) == len(points) == 12
    assert {(p.setup.processes, p.setup.engine.locking) for p in marks} == {(2, "per-node")}
    assert len(marks) == 3
    assert made.seconds <= 70
    assert not made.counted


def test_a_zip_changes_its_keys_together() -> None:
    text = '[sweep]\n"engine.locking" = ["global", "per-node"]\n'
    text += '[zip.load]\n"workload.w.iodepth" = [1, 8]\n"workload.w.bs" = ["4k", "64k"]\n'
    made = plan(text)
    assert made.sweep_keys == ("engine.locking", "load")
    found = [
        (p.setup.engine.locking, p.setup.workloads[0].iodepth, p.setup.workloads[0].bs) for p in made.points
    ]
    assert found == [(lock, *pair) for lock in ("global", "per-node") for pair in ((1, 4096), (8, 65536))]
    assert made.points[0].labels == {"engine.locking": "global", "load": "iodepth 1 4k"}
    assert made.points[0].settings["workload.w.bs"] == "4k"


def test_a_zip_has_labels_of_its_own_and_a_mark_may_stand_for_it() -> None:
    text = '[zip.load]\nlabels = ["small", "large"]\n"workload.w.bs" = ["4k", "64k"]\n'
    text += '[mark.m]\n"workload.w.bs" = "1M"\n'
    made = plan(text)
    assert [point.labels for point in made.points] == [{"load": "small"}, {"load": "large"}, {}]
    assert made.points[-1].setup.workloads[0].bs == 1 << 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[zip.a]\n"workload.w.bs" = ["4k"]\n"workload.w.iodepth" = [1, 2]\n',
            "b.toml:17: zip.a: its lists have",
        ),
        ("[zip.a]\n", "b.toml:17: zip.a: is empty"),
        ('[zip.a]\n"workload.w.bs" = "4k"\n', "b.toml:18: zip.a.workload.w.bs: must be a list"),
        (
            '[zip.a]\nlabels = ["x", "y"]\n"workload.w.bs" = ["4k"]\n',
            "b.toml:18: zip.a.labels: must be a list of 1",
        ),
        (
            '[sweep]\n"workload.w.bs" = ["4k"]\n[zip.a]\n"workload.w.bs" = ["8k"]\n',
            "b.toml:20: zip.a.workload.w.bs: is swept already",
        ),
        ('[sweep]\n"workload.w.iodepth" = "1..8"\n', "b.toml:18: sweep: workload.w.iodepth: must be a list"),
        ('[sweep]\n"workload.w.iodepth" = "8..1 in 3 steps"\n', "b.toml:18: sweep: workload.w.iodepth:"),
    ],
)
def test_wrong_axes(text: str, words: str) -> None:
    with pytest.raises(DocumentError) as caught:
        plan(text)
    assert str(caught.value).startswith(words)


def test_ranges() -> None:
    def depths(written: str) -> list[int]:
        made = plan(f'[sweep]\n"workload.w.iodepth" = "{written}"\n')
        return [point.setup.workloads[0].iodepth for point in made.points]

    assert depths("1..1000 in 4 steps") == [1, 10, 100, 1000]
    assert depths("10..50 in 5 equal steps") == [10, 20, 30, 40, 50]
    assert depths("1..3 in 9 steps") == [1, 2, 3], "no value twice"


def test_a_target_is_kept() -> None:
    made = plan('[target]\nlatency = "500us"\npercentile = "99.9"\n')
    assert made.target == {"latency": 0.0005, "percentile": "99.9"}
    with pytest.raises(DocumentError, match=r"b\.toml:18: target\.percentile: must be 50 or 99 or 99\.9"):
        plan('[target]\npercentile = "98"\n')
