"""Experiments from Python: what `engine run` does, with the result in hand."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.experiment.document import Document
from engine.experiment.plan import Point, make_plan
from engine.experiment.results import Results
from engine.experiment.runner import RESULT_FILE, Observer, Result, get_ready, run_plan

_BARE = re.compile(r"[A-Za-z0-9_-]+")


class Silent:
    """An observer that says nothing."""

    def started(self, number: int, total: int, point: Point) -> None: ...

    def finished(self, number: int, total: int, point: Point, run: Mapping[str, Any]) -> None: ...


def run(
    experiment: str | os.PathLike[str] | Mapping[str, Any],
    *,
    output: str | os.PathLike[str] | None = None,
    repeat: int | None = None,
    quick: bool = False,
    resume: bool = False,
    observer: Observer | None = None,
) -> Results:
    """Runs an experiment to its end and returns what `load_results` would.

    `experiment` is a TOML file, or the same as nested dictionaries. `output` is a new folder for the result
    (with `resume`, one to go on with); without it, nothing is kept but what is returned. Files that the
    experiment makes are made relative to the current folder.

    Raises engine.experiment.UserError, on one line, for mistakes in the experiment and for requests that
    fail. Ctrl-C leaves what was measured in `output`.
    """
    if isinstance(experiment, Mapping):
        document = Document("experiment", to_toml(experiment))
    else:
        document = Document.read(os.fspath(experiment))
    plan = make_plan(document, repeat, quick)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(output) if output is not None else Path(scratch)
        result = Result.resume(plan, folder) if resume else Result.create(plan, folder)
        get_ready(result, lambda _: None)
        run_plan(result, observer or Silent())
    return Results(folder / RESULT_FILE, result.data)


def to_toml(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Nested dictionaries of texts, numbers, booleans and lists as an experiment file."""
    lines = [f"{_key(name)} = {_value(value)}" for name, value in tree.items() if not _is_table(value)]
    if path and (lines or not tree):
        lines.insert(0, f"[{'.'.join(map(_key, path))}]")
    for name, value in tree.items():
        if _is_table(value):
            lines.append(to_toml(value, (*path, name)))
    return "\n".join(line for line in lines if line)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name)


def _value(value: Any) -> str:
    if _is_table(value):
        return "{" + ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return json.dumps(value, ensure_ascii=False)
