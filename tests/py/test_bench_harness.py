"""The harness that compares programs: ratios, marks, discarded rounds, errors in one line, with small
programs of its own in place of peers; and the closing line of CI. Single-threaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent.parent / "bench"
sys.path.insert(0, str(BENCH / "peers"))
sys.path.insert(0, str(BENCH))

import compare as bench_compare  # noqa: E402
import harness  # noqa: E402
import images  # noqa: E402
import programs  # noqa: E402
from harness import BenchError, Comparison, Figures, Peer, Settings, Side  # noqa: E402


def side(name: str, rate: float, code: str = "", latency_ns: float | None = None) -> Side:
    """A program that prints its rate."""

    def read(text: str) -> Figures:
        return Figures(float(text), requests=1000, latency_ns=latency_ns)

    return Side(name, "1.0", ((sys.executable, "-S", "-c", f"{code or 'pass'}\nprint({rate})"),), read)


def ticks(monkeypatch: pytest.MonkeyPatch, steal: Iterator[float]) -> None:
    """Gives the machine's CPU time: each run lasts 100 s of it, of which `steal` yields what was stolen."""
    state = {"steal": 0.0, "total": 0.0, "calls": 0.0}

    def read() -> tuple[float, float]:
        state["calls"] += 1
        if state["calls"] % 2 == 0:
            state["steal"] += next(steal)
            state["total"] += 100.0
        return state["steal"], state["total"]

    monkeypatch.setattr(harness, "cpu_ticks", read)


def test_ratios_and_marks() -> None:
    comparison = Comparison(
        "x",
        side("a", 200.0, latency_ns=10.0),
        (Peer(side("b", 100.0, latency_ns=20.0), 1.9, 2.5, latency=True),),
    )
    outcome = harness.compare(comparison, Settings(pairs=3, quick=True))
    assert len(outcome.kept) == 3
    assert outcome.ratios(0) == {"min": 2.0, "median": 2.0, "max": 2.0}
    assert outcome.same_ratios()["median"] == 1.0
    assert [met for _, met in outcome.marks()] == [True, True, False]
    document = json.loads(json.dumps(outcome.to_json()))
    assert document["ratios"][0]["rate"]["median"] == 2.0
    assert len(document["rounds"]) == 3
    assert [run["side"] for run in document["rounds"][0]["runs"]] == ["a", "b", "a"]
    text = "\n".join(harness.describe(outcome))
    assert "ratio to b" in text
    assert "2.000 / 2.000 / 2.000" in text
    assert "MISSES: latency" in text


def test_absolute_marks() -> None:
    subject = side("a", 6e6, latency_ns=2500.0)
    comparison = Comparison("x", subject, (), rate_at_least=5e6, latency_ns_at_most=2000.0)
    outcome = harness.compare(comparison, Settings(pairs=1, quick=True))
    assert outcome.marks() == [("5 M/s or more", True), ("2000 ns or less", False)]


def test_rates_of_processes_at_once_add_up() -> None:
    both = Side("two", "1", side("a", 100.0).commands * 2, side("a", 0.0).read)
    run = harness.run_once(both, 0.0)
    assert run.rate == 200.0
    assert run.requests == 2000


def test_cpu_time_is_what_the_children_used() -> None:
    busy = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    run = harness.run_once(side("busy", 1.0, busy), startup=0.0)
    assert 0.2 <= run.cpu_seconds < 2.0
    assert run.cpu_us_per_request == pytest.approx(1000 * run.cpu_seconds)
    assert harness.run_once(side("idle", 1.0), startup=100.0).cpu_us_per_request == 0.0


def test_a_round_with_steal_is_discarded_and_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks(monkeypatch, iter([0.0, 2.5, 0.0] + [1.0] * 6))  # the peer's run in the first round is disturbed
    comparison = Comparison("x", side("a", 2.0), (Peer(side("b", 1.0)),))
    outcome = harness.compare(comparison, Settings(pairs=2))
    assert len(outcome.kept) == 2
    assert len(outcome.discarded) == 1
    assert [each["discarded"] for each in outcome.to_json()["rounds"]] == [False, False, True]


def test_too_much_steal_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks(monkeypatch, iter([50.0] * 100))
    with pytest.raises(BenchError, match="steal"):
        harness.compare(Comparison("x", side("a", 1.0), ()), Settings(pairs=1))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("/nonexistent/program",), "does not start"),
        ((sys.executable, "-c", "import sys; sys.exit('no image')"), "no image"),
        ((sys.executable, "-c", "print('rubbish')"), "not understood"),
    ],
)
def test_a_program_that_fails_is_one_line(command: tuple[str, ...], message: str) -> None:
    broken = Side("broken", "1", (command,), side("a", 1.0).read)
    with pytest.raises(BenchError, match=message) as caught:
        harness.run_once(broken, 0.0)
    assert "\n" not in str(caught.value)


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RUN_LIMIT_S", 1)
    with pytest.raises(BenchError, match="not over after 1 s"):
        harness.run_once(side("hangs", 1.0, "import time; time.sleep(60)"), 0.0)


def test_tmpfs_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGINE_BENCH_DIR", str(tmp_path))
    monkeypatch.setattr(images, "file_system", lambda path: "tmpfs")
    with pytest.raises(BenchError, match="tmpfs"):
        images.seeded(1)


def test_images_are_seeded_and_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGINE_BENCH_DIR", str(tmp_path))
    monkeypatch.setattr(images, "file_system", lambda path: "ext4")
    one, two = images.seeded(1, seed=1), images.seeded(1, seed=2)
    assert one.read_bytes() != two.read_bytes()
    assert one.stat().st_blocks * 512 >= 1 << 20
    again = one.read_bytes()
    one.unlink()
    assert images.seeded(1, seed=1).read_bytes() == again


def test_the_output_of_qemu_img_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "qemu_img", lambda major: (("qemu-img",), "QEMU 7.2.22 (Debian 7.2)"))
    peer = programs.qemu_img_bench("installed", "-d", "64", count=3000, path="")
    assert peer.name == "QEMU 7.2.22"
    assert peer.read("Sending 3000 read requests\nRun completed in 1.500 seconds.\n").rate == 2000
    with pytest.raises(ValueError, match="Run completed"):
        peer.read("")


# ---- bench-compare ----


def stored(path: Path, seconds: list[float], ratio: float) -> None:
    stats = {"min": min(seconds), "median": sorted(seconds)[len(seconds) // 2], "max": max(seconds)}
    info = {"ratios": [{"peer": "QEMU", "rate": {"median": ratio}}]}
    document = {"benchmarks": [{"name": "test_peers[null:x]", "stats": stats, "extra_info": info}]}
    path.write_text(json.dumps(document), encoding="utf-8")


def test_drift_beyond_the_spread_is_called_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench_compare, "RESULTS", tmp_path)
    stored(tmp_path / "aaaa1111-20260101T000000Z.json", [0.10, 0.11, 0.12], 10.0)
    stored(tmp_path / "bbbb2222-20260102T000000Z.json", [0.20, 0.21, 0.22], 5.0)
    stored(tmp_path / "bbbb2222-20260103T000000Z-quick.json", [9.0], 1.0)
    stored(tmp_path / "cccc3333-20260104T000000Z.json", [0.115, 0.12, 0.13], 9.0)
    load = bench_compare.load
    slower = "\n".join(bench_compare.table(load("aaaa"), load("bbbb2222")))
    assert "SLOWER" in slower
    assert "-47.6%" in slower
    assert "10.000 x   5.000 x" in slower
    assert "within the spread" in "\n".join(bench_compare.table(load("aaaa"), load("cccc")))


@pytest.mark.parametrize("name", ["dddd", "not-json", ""])
def test_what_cannot_be_compared_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_compare, "RESULTS", tmp_path)
    (tmp_path / "not-json-20260101T000000Z.json").write_text("{}", encoding="utf-8")
    (tmp_path / "other-20260101T000000Z.json").write_text("{}", encoding="utf-8")
    assert bench_compare.main([name, name]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# ---- the test runner and CI ----


@pytest.mark.parametrize(
    ("recipe", "closing", "passes"),
    [
        ("exit 2", "0 passed, 1 failed, 0 skipped", False),
        (
            "echo 5 passed, 1 failed, 0 skipped > build/reports/summary.txt; exit 1",
            "5 passed, 1 failed, 0 skipped",
            False,
        ),
        (
            "echo 0 passed, 0 failed, 3 skipped > build/reports/summary.txt",
            "0 passed, 0 failed, 3 skipped",
            False,
        ),
        (
            "echo 5 passed, 0 failed, 1 skipped > build/reports/summary.txt",
            "5 passed, 0 failed, 1 skipped",
            True,
        ),
    ],
)
def test_ci_closes_with_the_counts(recipe: str, closing: str, passes: bool, tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / "build" / "reports").mkdir(parents=True)
    (tmp_path / "build" / "reports" / "summary.txt").write_text(
        "9 passed, 0 failed, 0 skipped\n"
    )  # of a run before
    (tmp_path / ".ci" / "run").write_bytes((BENCH.parent / ".ci" / "run").read_bytes())
    (tmp_path / "Makefile").write_text(f"test:\n\t@{recipe}\n")
    result = subprocess.run(
        ["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.stdout.splitlines()[-1] == closing
    assert (result.returncode == 0) is passes
