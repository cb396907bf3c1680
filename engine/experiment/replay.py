"""Recordings in experiments: the `replay` keys of a workload, and the recording on its way to the workers.

A file is read once for each plan, when its keys are checked; workers get it as memory that they inherit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.experiment.errors import describe
from engine.experiment.model import ReplaySpec, Setup

if TYPE_CHECKING:
    from engine.replay import Recording

_BESIDE = ("rw", "rwmixread", "bs", "rate-iops", "flush-every", "verify")  # what a recording says itself
_KEYS = ("replay_speed", "replay_file", "replay_event", "replay_beyond")


class ReplayError(ValueError):
    """What is wrong with one key of a workload."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


@dataclass
class _Read:
    """One file, read."""

    recording: Recording
    sha256: str
    exported: tuple[int, dict[str, Any]] | None = None


_Wish = tuple[str, str | None, str | None]  # path, file, event
_read: dict[tuple[_Wish, int, int], _Read] = {}  # with size and time of change


def replay_of(values: dict[str, Any], given: Container[str]) -> dict[str, Any]:
    """The workload's `replay` from the checked keys, of which the `replay-…` are taken out; `given`: the keys
    that the file has."""
    own = {key: values.pop(key) for key in _KEYS}
    path = values["replay"]
    if path is None:
        for key in own:
            if key.replace("_", "-") in given:
                raise ReplayError(key.replace("_", "-"), "goes with `replay`")
        return {"replay": None}
    for key in _BESIDE:
        if key in given:
            raise ReplayError(key, "does not go with `replay`, which says what is done and when")
    speed = own["replay_speed"]
    try:
        read = _load((path, own["replay_file"], own["replay_event"]))
    except OSError as error:
        text = describe(error)
        raise ReplayError("replay", text if path in text else f"{path}: {text}") from None
    recording = read.recording
    if not recording.timed and speed not in (None, "max"):
        raise ReplayError("replay-speed", f'{path} has no times, so it can only be "max"')
    spec = ReplaySpec(
        path,
        read.sha256,
        own["replay_file"],
        own["replay_event"],
        speed,
        own["replay_beyond"] == "wrap",
        recording.counts,
        recording.seconds,
        recording.timed,
    )
    return {"replay": spec}


def _load(wish: _Wish) -> _Read:
    from engine.replay import Recording

    path, file, event = wish
    status = os.stat(path)
    key = (wish, status.st_size, status.st_mtime_ns)
    if key not in _read:
        recording = Recording.read(path, file=file, event=event)
        with open(path, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        _read[key] = _Read(recording, digest)
    return _read[key]


def load(spec: ReplaySpec) -> Recording:
    """The recording, unless its file is another one by now."""
    read = _load((spec.path, spec.file, spec.event))
    if read.sha256 != spec.sha256:
        raise OSError(0, "has changed since the plan was made", spec.path)
    return read.recording


def shared(setup: Setup) -> dict[str, tuple[int, dict[str, Any]]]:
    """For each workload with a recording: a descriptor that workers are to inherit, and what goes with it."""
    found = {}
    for workload in setup.workloads:
        if workload.replay is not None:
            load(workload.replay)
            read = _load((workload.replay.path, workload.replay.file, workload.replay.event))
            read.exported = read.exported or read.recording.export()
            found[workload.name] = read.exported
    return found


def inherited(order: dict[str, Any]) -> dict[str, Recording]:
    """What `shared` has given to this worker."""
    from engine.replay import Recording

    return {name: Recording.imported(descriptor, facts) for name, (descriptor, facts) in order.items()}
