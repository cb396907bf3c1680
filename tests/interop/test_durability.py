"""Durability on a real kernel: each prefix of a write log, with power lost after it, has what was
acknowledged before a flush; and a process that is killed leaves what its callers were told.

A killed process leaves its page cache behind, so the second says nothing of the first.
SIGKILL_RUNS says how many are killed (12).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import durable_work
import pytest
from durable_work import SECTOR, SECTORS_EACH, check_sectors, content, do, place_of, steps, wanted_of

import engine
from engine.write_log import Entry, WriteLog, replay

THREADS = 3
DISK = THREADS * SECTORS_EACH * SECTOR
STEPS = 60  # of each thread
KILLS = int(os.environ.get("SIGKILL_RUNS", "12"))

Times = dict[tuple[int, int], tuple[int, int]]  # (thread, step): when it began and ended


def work(node: engine.BlockNode, contexts: list[engine.AioContext], seed: int) -> Times:
    times: Times = {}
    lock = threading.Lock()
    clock = 0

    def tick() -> int:
        nonlocal clock
        with lock:
            clock += 1
            return clock

    def run(thread: int) -> None:
        for step in wanted_of(seed, thread, STEPS):
            began = tick()
            do(node, contexts[thread % len(contexts)], thread, step)
            times[thread, step.number] = began, tick()

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(THREADS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(times) == THREADS * STEPS
    return times


class History:
    """What the entries of a log say of the work that made them."""

    def __init__(self, log: WriteLog, seed: int, times: Times) -> None:
        self.seed = seed
        self.times = times
        self.steps = [{s.number: s for s in wanted_of(seed, t, STEPS)} for t in range(THREADS)]
        self.entries = list(log)
        self.whose = [self._step_of(log, entry) for entry in self.entries]

    def _step_of(self, log: WriteLog, entry: Entry) -> tuple[int, int] | None:
        """By what was written; None of other operations."""
        if entry.op != "write":
            return None
        thread, number, _ = log.data(entry)[: SECTOR // 16].split(b";")[0].split(b".")[:3]
        return int(thread), int(number)

    def problems(self, prefix: int, image: bytes) -> list[str]:
        """In the state after a power loss that follows entry number `prefix`."""
        seen = [0] * THREADS  # the last step of each thread that has surely been submitted
        for whose in self.whose[:prefix]:
            if whose is not None:
                seen[whose[0]] = max(seen[whose[0]], whose[1])
        # The flush before a note was acknowledged when the note was written.
        flushes = [
            (thread, self.steps[thread][note].after)
            for whose in self.whose[:prefix]
            if whose is not None and self.steps[(thread := whose[0])][(note := whose[1])].op == "note"
        ]
        began = max((self.times[flush][0] for flush in flushes), default=0)
        wrong = []
        for thread in range(THREADS):
            ended = [n for n in self.steps[thread] if self.times[thread, n][1] < began]
            wrong += check_sectors(
                self.seed, thread, image, max(ended, default=0), min(seen[thread] + 8, STEPS),
                lambda step, last=seen[thread]: step.op == "fua" and step.number < last,
            )  # fmt: skip
        return wrong


def stack(eng: engine.Engine, kind: str, disk: Path, log: Path, **options: Any) -> engine.BlockNode:
    logged: dict[str, Any] = {
        "driver": "write-log",
        "file": {"driver": "file", "filename": str(disk)},
        "log": {"driver": "file", "filename": str(log)},
        **options,
    }
    if kind == "raw":
        return eng.open(driver="raw", file=logged)
    node = eng.open(**logged)
    if kind == "filtered":
        node.insert_filter("passthrough")
        node.insert_filter("delay", write="10us", spread="50us")
    return node


@pytest.mark.parametrize("kind", ["plain", "raw", "filtered"])
@pytest.mark.parametrize("backend", ["io_uring", "threads"])
def test_each_prefix_has_what_was_flushed(tmp_path: Path, kind: str, backend: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    assert survey(tmp_path, kind, backend, seed) == []


def survey(tmp_path: Path, kind: str, backend: str, seed: int, **options: Any) -> list[str]:
    disk, log_path = tmp_path / "disk", tmp_path / "log"
    for path, size in ((disk, DISK), (log_path, 8 << 20)):
        with path.open("wb") as file:
            file.truncate(size)
    with engine.Engine(backend=backend) as eng:
        contexts = [eng.add_context(f"io{i}", backend=backend) for i in range(2)]
        times = work(stack(eng, kind, disk, log_path, **options), contexts, seed)
    wrong: list[str] = []
    with WriteLog(log_path) as log:
        history = History(log, seed, times)
        assert log.gaps == []
        flushes = [entry.number + 1 for entry in history.entries if entry.op == "flush"]
        others = random.Random(seed).sample(range(len(history.entries)), 20)
        for prefix in [*flushes, *others, len(history.entries)]:
            for chance in range(3):
                image = tmp_path / "image"
                image.unlink(missing_ok=True)
                replay(log, image, history.entries[:prefix], power_loss=seed + chance)
                wrong += history.problems(prefix, image.read_bytes())
        image.unlink()
        replay(log, image, history.entries)
        assert image.read_bytes() == disk.read_bytes()
    return wrong


def test_flushes_that_do_nothing_are_found(tmp_path: Path) -> None:
    """The canary: what the check is there for."""
    wrong = survey(tmp_path, "plain", "io_uring", 7, **{"cache.no-flush": True})
    assert any("thread" in line for line in wrong)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}, {KILLS} killed")
    chance = random.Random(seed)
    acknowledged = in_flight = 0
    for run in range(KILLS):
        folder = tmp_path / str(run)
        folder.mkdir()
        done, open_ends = kill_one(folder, seed + run, chance.uniform(0, 0.08))
        acknowledged += done
        in_flight += open_ends
    print(f"{acknowledged} requests acknowledged, {in_flight} gaps in logs")
    assert acknowledged > 10 * KILLS


def kill_one(folder: Path, seed: int, after_s: float) -> tuple[int, int]:
    disk, log_path = folder / "disk", folder / "log"
    for path, size in ((disk, DISK), (log_path, 64 << 20)):
        with path.open("wb") as file:
            file.truncate(size)
    program = [sys.executable, durable_work.__file__, str(disk), str(log_path), str(seed), str(THREADS)]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        said = first + process.stdout.read()
    told = [0] * THREADS
    for line in said.splitlines(keepends=True):
        if line.endswith(b"\n"):
            thread, number = map(int, line.split())
            told[thread] = number
    assert sorted(path.name for path in folder.iterdir()) == ["disk", "log"], "an overlay leaves nothing"
    image = read_once_unlocked(disk)
    replayed = folder / "replayed"
    with WriteLog(log_path) as log:
        entries = list(log)
        gaps = len(log.gaps)
        replay(log, replayed, entries)
        written = {(e.offset, log.data(e)[:32]) for e in entries if e.op == "write"}
    for thread in range(THREADS):
        for data in (image, replayed.read_bytes()):
            # All that was acknowledged is there; of the one that was under way, any sectors.
            assert check_sectors(seed, thread, data, told[thread], told[thread] + 2, lambda step: False) == []
        for step in wanted_of(seed, thread, told[thread]):
            if step.op in ("write", "fua", "note"):
                place = place_of(thread, step.sector)
                assert (place, content(thread, step, step.sector)[:32]) in written, (
                    f"{step} is not in the log"
                )
    for path in folder.iterdir():
        path.unlink()
    return sum(told), gaps


def read_once_unlocked(disk: Path) -> bytes:
    """The kernel takes rings of a killed process down a moment after it, and their files' locks with them."""
    end = time.monotonic() + 20
    with engine.Engine() as eng:
        while True:
            try:
                with eng.open(driver="file", filename=str(disk)) as node:
                    return node.pread(DISK, 0)
            except engine.Conflict:
                assert time.monotonic() < end, "its lock outlives the process"
                time.sleep(0.005)


def test_the_work_follows_from_its_seed() -> None:
    first = [step for step, _ in zip(steps(3, 1), range(50), strict=False)]
    assert first == wanted_of(3, 1, 50)
    assert {step.op for step in first} == {"write", "fua", "zeroes", "flush", "note"}
    assert [step.number for step in first] == list(range(1, 51))
