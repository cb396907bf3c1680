"""Traces in Python: stages that cover each request's time once, bands of latency, and a file for Perfetto."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import engine
import engine.experiment
from engine.cli import main
from engine.experiment import stages
from engine.experiment.errors import UserError
from engine.report.perfetto import encode, perfetto
from engine.report.stages import stage_pictures
from engine.trace import STAGES, Mark, Stage, Trace, Traces

IO0, IO1, NODE, BELOW = 3, 4, 7, 8


def mark(at: int, kind: str, detail: str = "", node: int = 0, context: int = IO0) -> Mark:
    return Mark(at, node, context, kind, detail)


def trace(*marks: Mark, start: int = 1000, end: int = 2000, front: int = IO0, lost: int = 0) -> Trace:
    return Trace(99, "read", 4096, 512, 0, start, end, front, tuple(marks), lost)


def named(one: Trace) -> list[tuple[str, int]]:
    """Names and durations."""
    return [(stage.name, stage.end_ns - stage.begin_ns) for stage in one.stages()]


def test_each_stage_follows_from_the_marks() -> None:
    one = trace(
        mark(1010, "popped"),
        mark(1020, "entered", node=NODE),
        mark(1030, "wait", "lock wait", NODE),
        mark(1130, "waited", "lock wait", NODE),
        mark(1140, "entered", node=BELOW),
        mark(1150, "queued", node=BELOW),
        mark(1200, "submitted", node=BELOW),
        mark(1700, "reaped", node=BELOW),
        mark(1720, "left", node=BELOW),
        mark(1800, "left", node=NODE),
        mark(1850, "completed"),
    )
    assert named(one) == [
        ("queue", 10), ("mapping", 10), ("mapping", 10), ("lock wait", 100), ("mapping", 10), ("mapping", 10),
        ("submit", 50), ("device", 500), ("completion", 20), ("completion", 80), ("completion", 50),
        ("callback", 150),
    ]  # fmt: skip
    waits = [stage for stage in one.stages() if stage.name == "lock wait"]
    assert waits == [Stage(1030, 1130, "lock wait", NODE, IO0)]


def test_of_parts_the_furthest_counts() -> None:
    one = trace(
        mark(1000, "popped"),
        mark(1000, "entered", node=NODE),
        mark(1100, "queued", node=BELOW),
        mark(1100, "submitted", node=BELOW),
        mark(1200, "wait", "held back", BELOW),  # another part
        mark(1400, "reaped", node=BELOW),
        mark(1600, "waited", "held back", BELOW),
        mark(1600, "queued", node=BELOW),
        mark(1650, "submitted", node=BELOW),
        mark(1900, "reaped", node=BELOW),
        mark(1950, "left", node=NODE),
    )
    assert named(one) == [
        ("mapping", 100), ("device", 100), ("device", 200), ("held back", 200), ("submit", 50),
        ("device", 250), ("completion", 50), ("callback", 50),
    ]  # fmt: skip


def test_stages_cover_the_time_exactly_whatever_the_marks_say() -> None:
    for marks in (
        (),
        (mark(500, "popped"), mark(3000, "left")),  # clocks that disagree
        (mark(1500, "waited", "lock wait", NODE), mark(1600, "left", node=NODE)),  # nothing to end
        (mark(1100, "popped"), mark(1200, "wait", "device", NODE), mark(1700, "left", node=NODE)),
    ):
        own = trace(*marks).stages()
        assert own[0].begin_ns == 1000
        assert own[-1].end_ns == 2000
        assert all(a.end_ns == b.begin_ns for a, b in itertools.pairwise(own))
        assert all(stage.name in STAGES and stage.end_ns > stage.begin_ns for stage in own)


def test_a_workload_leaves_traces() -> None:
    with engine.Engine() as own, own.add_context("io0") as context:
        with own.open(driver="delay", read="50us", file={"driver": "null", "latency-ns": "100us"}) as node:
            with own.workload(node, rw="randread", count=60, iodepth=2, trace=1, context=context) as load:
                load.start()
                load.wait()
                traces = load.traces()
            names = stages.node_names([node])
            assert names[node.info.id] == node.name
            assert names[node.child("file").info.id] == node.child("file").name
        assert traces.every == 1
        assert len(traces.requests) == 60
        longest: dict[str, int] = {}  # a pause of this thread before a mark shortens what follows it
        for one in traces.requests:
            spent: dict[str, int] = {}
            for stage in one.stages():
                spent[stage.name] = spent.get(stage.name, 0) + stage.end_ns - stage.begin_ns
            assert sum(spent.values()) == one.latency_ns
            for name, ns in spent.items():
                longest[name] = max(longest.get(name, 0), ns)
            assert one.front_context == context.info.id
            assert (one.op, one.length, one.result) == ("read", 4096, 0)
        assert longest["held back"] >= 50_000
        assert longest["device"] >= 100_000


def test_one_that_runs_is_not_asked_for_its_traces() -> None:
    with engine.Engine() as own, own.open(driver="null", **{"latency-ns": "1ms"}) as node:
        with own.workload(node, rw="read", runtime=60.0, trace=1) as load:
            load.start()
            with pytest.raises(engine.Conflict):
                load.traces()
        with pytest.raises(engine.InvalidArgument, match="trace"):
            own.workload(node, rw="read", runtime=1.0, trace=-1)


def of_latency(latency: int, device: int) -> Trace:
    return trace(
        mark(1000, "popped"),
        mark(1000, "wait", "device", NODE),
        mark(1000 + device, "waited", "device", NODE),
        mark(1000 + device, "completed"),
        end=1000 + latency,
    )


def test_bands_are_means_between_percentiles() -> None:
    found = stages.bands([of_latency(100 * n, 50 * n) for n in range(1, 1001)], {})
    assert [(band["from"], band["to"], band["traces"]) for band in found] == [
        (0.0, 50.0, 500), (50.0, 90.0, 400), (90.0, 99.0, 90), (99.0, 99.9, 9), (99.9, 100.0, 1),
    ]  # fmt: skip
    first = {part["stage"]: part["mean_ns"] for part in found[0]["stages"]}
    assert found[0]["mean_ns"] == 100 * 250.5
    assert first == {"device": 50 * 250.5, "callback": 50 * 250.5}
    assert stages.bands([], {}) == []
    assert [band["traces"] for band in stages.bands([of_latency(100, 50)], {})] == [1]


def test_who_drew_more_often_gives_as_many() -> None:
    often = Traces(100, [of_latency(100 + n, 50) for n in range(400)])
    rarely = Traces(400, [of_latency(100 + n, 50) for n in range(100)])
    every, together = stages.joined([often, rarely])
    assert every == 400
    assert len(together) == 200
    assert stages.joined([]) == (0, [])


def test_perfetto_reads_what_is_written(tmp_path: Path) -> None:
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto_trace  # type: ignore[import-untyped]

    across = trace(
        mark(1100, "popped", context=IO1),
        mark(1200, "entered", node=NODE, context=IO1),
        mark(1800, "left", node=NODE, context=IO1),
        mark(1850, "completed", context=IO1),
    )
    beside = trace(mark(1100, "popped"), mark(1900, "completed"), start=1050, end=1950)
    data = {
        "examples": [stages.as_json(across), stages.as_json(beside)],
        "nodes": {str(NODE): "disk"},
        "contexts": {str(IO0): "front", str(IO1): "back"},
    }
    read = perfetto_trace.Trace()
    read.ParseFromString(encode(data))
    tracks = {
        p.track_descriptor.uuid: p.track_descriptor for p in read.packet if p.HasField("track_descriptor")
    }
    above = {track.name for track in tracks.values() if not track.HasField("parent_uuid")}
    assert above == {"front", "back"}
    depth: dict[int, list[str]] = {}
    flows: dict[int, list[str]] = {}
    times = []
    for packet in (p for p in read.packet if p.HasField("track_event")):
        event, track = packet.track_event, tracks[packet.track_event.track_uuid]
        times.append(packet.timestamp)
        stack = depth.setdefault(track.uuid, [])
        if event.type == event.TYPE_SLICE_END:
            stack.pop()
            continue
        stack.append(event.name)
        assert len(stack) <= 2, "a slice of a request, and its stages inside"
        for flow in event.flow_ids:
            flows.setdefault(flow, []).append(tracks[track.parent_uuid].name)
    assert times == sorted(times)
    assert not any(depth.values())
    assert flows[99][:2] == ["front", "front"]  # both requests have the same id here
    assert "back" in flows[99]
    assert {track.name for track in tracks.values()} == {"front", "back", "requests 1", "requests 2"}


EXPERIMENT = {
    "run": {"repeat": 2, "trace": 1, "allow-holes": True},
    "context": {"front": {}, "io0": {}},
    "blockdev": {
        "slow": {
            "driver": "overlay",
            "file.driver": "memory",
            "file.size": "4M",
            "backing.driver": "delay",
            "backing.read": "20us",
            "backing.file.driver": "null",
            "backing.file.size": "1M",
        }
    },
    "device": {"vda": {"node": "slow", "queues": ["io0"]}},
    "workload": {
        "w": {"device": "vda", "generators": ["front"], "rw": "randrw", "iodepth": 4, "count": 400},
    },
}


def test_an_experiment_shows_where_the_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = engine.experiment.run(EXPERIMENT)
    kept = [run for run in results.data["runs"] if not run["discarded"]]  # one with steal is made again
    first, second = (run["record"]["engine"]["traces"] for run in kept)
    (job,) = first["jobs"]
    assert (job["job"], job["every"], job["traces"], job["incomplete"]) == ("w", 1, 400, 0)
    assert sum(band["traces"] for band in job["bands"]) == 400
    spent = {(part["stage"], part["node"]) for band in job["bands"] for part in band["stages"]}
    assert ("held back", "slow.backing") in spent or any(name == "held back" for name, _ in spent)
    assert ("lock wait", "slow") in spent
    assert {"queue", "mapping", "completion", "callback"} <= {name for name, _ in spent}
    for band in job["bands"]:
        assert sum(part["mean_ns"] for part in band["stages"]) == pytest.approx(band["mean_ns"])
    assert len(first["examples"]) >= 60
    assert second["examples"] == []  # those of the first repetition are enough
    (picture,) = stage_pictures(results.data)
    assert picture.collisions() == []
    results.save(tmp_path / "result.json")
    assert main(["report", str(tmp_path / "result.json"), "--perfetto", str(tmp_path / "t.pftrace")]) == 0
    assert "Where the time went" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert b"front" in (tmp_path / "t.pftrace").read_bytes()
    assert "ui.perfetto.dev" in capsys.readouterr().out


def test_a_result_without_traces_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"trace = 100"):
        perfetto({"runs": [{"point": 0, "record": {"engine": {}}}]})
