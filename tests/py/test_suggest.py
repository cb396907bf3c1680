"""`engine doctor --suggest`: what it makes of figures, and that `engine run` takes what it prints."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from engine import suggest
from engine.experiment.document import Document
from engine.experiment.host import HostLoad
from engine.experiment.model import NodeSpec
from engine.experiment.plan import make_plan
from engine.suggest import Figure, Point

COMMAND = [sys.executable, "-P", "-m", "engine", "doctor", "--allow-debug-build", "--runtime", "10ms"]


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120, check=False)


def figure(iops: float = 1000.0, latency_us: float = 10.0) -> Figure:
    return Figure(iops, latency_us, 1.0)


# ---- decisions ----


def test_polling_is_suggested_where_it_saves_latency() -> None:
    figures = {0: figure(latency_us=20), 32768: figure(latency_us=12), 131072: figure(latency_us=11.9)}
    choice = suggest.choose_poll(figures)
    assert choice.value == 32768
    assert choice.reason[0].startswith("saves 8.0 µs of 20.0 µs")
    assert "poll-max-ns 131072: 1,000 IOPS, 11.9 µs, 1.00 µs of CPU" in choice.reason[-1]


def test_no_polling_where_it_saves_nothing() -> None:
    choice = suggest.choose_poll({0: figure(latency_us=10.4), 32768: figure(latency_us=10)})
    assert choice.value == 0
    assert "sleep at once" in choice.reason[0]


def test_the_least_depth_that_reaches_the_best_rate() -> None:
    figures = {1: figure(100), 4: figure(390), 16: figure(960), 64: figure(1000)}
    assert suggest.choose_depth(figures).value == 16


def test_a_context_must_be_worth_a_cpu() -> None:
    assert suggest.choose_contexts({1: figure(950), 2: figure(1000)}).value == 1
    assert suggest.choose_contexts({1: figure(500), 2: figure(950), 4: figure(1000)}).value == 2
    assert "one core only" in suggest.choose_contexts({1: figure()}).reason[0]


def test_threads_only_where_they_are_clearly_faster() -> None:
    assert suggest.choose_backend({"io_uring": figure(100), "threads": figure(105)}).value == "auto"
    assert suggest.choose_backend({"io_uring": figure(100), "threads": figure(120)}).value == "threads"
    choice = suggest.choose_backend({"threads": figure(120)})
    assert choice.value == "auto"
    assert "does not work here" in choice.reason[0]


def test_candidates_are_measured_in_turns_and_the_median_counts() -> None:
    order: list[int] = []
    outlier = iter([1.0, 500.0, 3.0, 4.0, 2.0, 9000.0])

    def measure(point: Point) -> Figure:
        order.append(point.iodepth)
        return figure(next(outlier))

    found = suggest.rounds(measure, {depth: Point((0,), depth) for depth in (1, 4)})
    assert order == [1, 4, 1, 4, 1, 4]
    assert (found[1].iops, found[4].iops) == (2.0, 500.0)


def test_each_answer_is_used_by_the_next_question() -> None:
    """A disk that wants threads, depth 4, polling and two contexts; and no more runs than announced."""
    seen: list[Point] = []

    def measure(point: Point) -> Figure:
        seen.append(point)
        rate = 100.0 * min(point.iodepth, 4) * min(len(point.cpus), 2) * (2 if point.aio == "threads" else 1)
        return figure(rate, 50.0 if point.poll_max_ns == 0 else 20.0)

    found = suggest.suggest(measure, ["io_uring", "threads"], [3, 5, 7])
    assert found.aio.value == "threads"
    assert found.iodepth.value == 4
    assert found.poll.value == 32768
    assert found.cpus == (3, 5)
    assert len(seen) == suggest.runs_of(["io_uring", "threads"], [3, 5, 7])
    assert seen[-1] == Point((3, 5), 4, 32768, "threads")


def test_one_cpu_of_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    monkeypatch.setattr(suggest, "online_cpus", lambda: [0, 1, 2, 3, 4, 5])
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    monkeypatch.setattr(suggest, "read_text", lambda path: siblings.get(int(path.split("/cpu")[-1][0])))
    assert suggest.one_cpu_of_each_core() == [1, 4, 0]


def test_what_disturbed_it_is_told() -> None:
    assert "other guests took 5.0 %" in suggest.host_lines(HostLoad(5.0, 10.0, 100.0), 10.0)[-1]
    assert "other processes took 20 %" in suggest.host_lines(HostLoad(0.0, 30.0, 100.0), 10.0)[-1]
    assert len(suggest.host_lines(HostLoad(0.0, 10.0, 100.0), 10.0)) == 1


# ---- the document ----


@pytest.mark.parametrize("name", ["disk.img", 'a "b"\\c.img', "zwölf\x7f\n.img"])
def test_any_file_name_is_a_toml_string(name: str) -> None:
    choice = suggest.Choice(1, ("because",))
    found = suggest.Suggestion(suggest.Choice("auto", ("because",)), choice, choice, choice, (0,))
    node = NodeSpec("disk", {"driver": "file", "node-name": "disk", "filename": name, "read-only": True})
    text = "\n".join(suggest.document(found, node, ["head"]))
    assert tomllib.loads(text)["blockdev"]["disk"] == {"driver": "file", "filename": name, "read-only": True}


@pytest.mark.parametrize("source", [["--null", "1m"], ["--buffered"], []], ids=["null", "buffered", "direct"])
def test_what_it_prints_is_an_experiment(source: list[str], image: Path, tmp_path: Path) -> None:
    arguments = source if "--null" in source else [*source, str(image)]
    before = image.read_bytes()
    run = doctor("--suggest", *arguments)
    assert (run.returncode, run.stderr) == (0, "")
    file = tmp_path / "suggested.toml"
    file.write_text(run.stdout, encoding="utf-8")
    assert image.read_bytes() == before
    document = tomllib.loads(run.stdout)
    for context in document["context"].values():
        assert context.keys() == {"cpus", "poll-max-ns", "aio"}
    assert document["device"]["vda"]["queues"] == list(document["context"])
    for reason in ("contexts", "poll-max-ns", "aio", "iodepth"):
        assert f"# {reason} = " in run.stdout
    plan = make_plan(Document.read(str(file)), None, False)
    assert len(plan.points) == 1
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "engine", "run", "--plan", str(file)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (shown.returncode, shown.stderr) == (0, "")


# ---- what is wrong ----


def test_wrong_images_are_one_clear_line(tmp_path: Path, image: Path) -> None:
    hole = tmp_path / "hole.img"
    with hole.open("wb") as file:
        file.truncate(1 << 20)
    for arguments, status, text in (
        ([str(tmp_path / "missing.img")], 1, "missing.img"),
        ([str(tmp_path)], 1, str(tmp_path)),
        ([str(hole)], 1, "hole"),
        (["--format", "nonsense", str(image)], 1, "nonsense"),
        ([], 2, "needs an IMAGE"),
        (["--null", "1m", str(image)], 2, "leave out IMAGE"),
        (["--json", str(image)], 2, "leave out --json"),
    ):
        run = doctor("--suggest", *arguments)
        assert run.returncode == status, run.stderr
        assert run.stdout == ""
        assert run.stderr.startswith("engine: "), run.stderr
        assert run.stderr.count("\n") == 1, run.stderr
        assert text in run.stderr


def test_an_image_without_suggest() -> None:
    run = doctor("disk.img")
    assert run.returncode == 2
    assert "go with --suggest" in run.stderr
