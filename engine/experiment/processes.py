"""Runs one point in worker processes: starts them, lets all begin at one moment, collects what they did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from engine.experiment.errors import SettingError, UserError
from engine.experiment.host import HostMeter
from engine.experiment.model import Setup
from engine.experiment.record import make_record
from engine.experiment.replay import shared

_TIMEOUT_SECONDS = 10.0


def run_point(setup: Setup) -> dict[str, Any]:
    """One run of one point, as a document (`record.make_record`) without host and build."""
    order = setup.to_json()
    recordings = shared(setup)
    descriptors = [descriptor for descriptor, _ in recordings.values()]
    workers = []
    try:
        for process in range(setup.processes):
            wish = {"setup": order, "process": process, "recordings": recordings, "parent": os.getpid()}
            workers.append(_Worker(wish, descriptors))
        for worker in workers:
            worker.expect("ready")
        meter = HostMeter()
        for worker in workers:
            worker.send("go")
        parts = [worker.result() for worker in workers]
        record = make_record(setup, parts, meter.load(), host=False)
    except BaseException:
        for worker in workers:
            worker.end(kill=True)
        raise
    for worker in workers:
        worker.end()
    return record


class _Worker:
    def __init__(self, order: dict[str, Any], descriptors: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine.experiment.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is for us alone; we end the workers
            pass_fds=descriptors,
        )
        self.send(order)

    def send(self, value: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        value = json.loads(line)
        if isinstance(value, dict) and "error" in value:
            if path := value.get("path"):
                raise SettingError(value["error"], tuple(path))
            raise UserError(value["error"])
        return value

    def _death(self) -> UserError:
        try:
            status = self._process.wait(_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            return UserError("a worker process closed its pipe and did not end")
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return UserError(f"a worker process ended with {how} before it had a result")

    def expect(self, value: Any) -> None:
        got = self._receive()
        if got != value:
            raise UserError(f"a worker process said {got!r} instead of {value!r}")

    def result(self) -> dict[str, Any]:
        value: dict[str, Any] = self._receive()["result"]
        return value

    def end(self, kill: bool = False) -> None:
        """Waits for its end, or ends it, whatever it is doing."""
        if kill:
            self._process.kill()
        if self._process.stdin is not None:
            with suppress(OSError):  # what it no longer reads does not matter
                self._process.stdin.close()
        try:
            self._process.wait(_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
