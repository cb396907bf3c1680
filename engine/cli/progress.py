"""Progress of a long command: a bar on a terminal, JSON records on a descriptor, one record on SIGUSR1."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any, TextIO

from engine.experiment.errors import UserError
from engine.experiment.plan import Point
from engine.report import figures

_BAR = 20


class Progress:
    """Watches the runs of a plan. A context manager: it owns the terminal's last line and SIGUSR1 meanwhile.

    `terminal` is None where there is none; `descriptor` gets one JSON record a line after each run.
    """

    def __init__(self, terminal: TextIO | None, descriptor: int | None) -> None:
        self._terminal = terminal
        self._descriptor = descriptor
        self._began = time.monotonic()
        self._done = 0
        self._total = 0
        self._state = "running"
        if descriptor is not None:
            try:
                os.fstat(descriptor)
            except OSError:
                raise UserError(f"--progress-fd: descriptor {descriptor} is not open") from None

    def __enter__(self) -> Progress:
        self._before = signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGUSR1, self._before)
        self._clear()
        self._state = "done" if kind is None else "stopped" if kind is KeyboardInterrupt else "failed"
        self._record(str(error) if self._state == "failed" else None)

    def started(self, number: int, total: int, point: Point) -> None:
        self._done, self._total = number, total
        if self._terminal is None:
            return
        filled = _BAR * number // total
        bar = "█" * filled + "·" * (_BAR - filled)
        eta = self._eta()
        left = f", {figures.seconds(eta)} left" if eta is not None else ""
        text = f"{bar} {number + 1}/{total}{left}  {point.title}"
        print(f"\r\033[K{text[: _columns()]}", end="", file=self._terminal, flush=True)

    def finished(self, number: int, total: int, point: Point, run: Mapping[str, Any]) -> None:
        self._done, self._total = number + 1, total
        self._record()

    def _eta(self) -> float | None:
        if not self._done:
            return None
        return (time.monotonic() - self._began) / self._done * (self._total - self._done)

    def _line(self, error: str | None = None) -> str:
        eta = self._eta()
        record = {
            "job": "run",
            "state": self._state,
            "done": self._done,
            "total": self._total,
            "elapsed": round(time.monotonic() - self._began, 3),
            "eta": None if eta is None else round(eta, 3),
            "error": error,
        }
        return json.dumps(record)

    def _record(self, error: str | None = None) -> None:
        if self._descriptor is not None:
            os.write(self._descriptor, (self._line(error) + "\n").encode())

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._clear()
        print(self._line(), file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._terminal is not None:
            print("\r\033[K", end="", file=self._terminal, flush=True)


def _columns() -> int:
    from shutil import get_terminal_size

    return get_terminal_size().columns - 1
