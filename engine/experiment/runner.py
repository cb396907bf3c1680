"""Runs a plan: images, placement, all runs in interleaved order, and the result file after each of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from engine.experiment.errors import SettingError, UserError, describe
from engine.experiment.host import STEAL_LIMIT_PERCENT, check_cpus, describe_host
from engine.experiment.images import prepare
from engine.experiment.measure import describe_context
from engine.experiment.model import ContextSpec
from engine.experiment.plan import Plan, Point
from engine.experiment.preflight import warnings
from engine.experiment.processes import run_point
from engine.experiment.record import build, failures
from engine.experiment.search import Search
from engine.experiment.summary import outliers, summarise, usable

RESULT_FILE = "result.json"
FORMAT = "blkengine experiment 1"


class Observer(Protocol):
    """Who watches a run, for progress."""

    def started(self, number: int, total: int, point: Point) -> None: ...
    def finished(self, number: int, total: int, point: Point, run: Mapping[str, Any]) -> None: ...


def get_ready(result: Result, say: Callable[[str], None]) -> None:
    """Before the first run: the images, where contexts run, and what of the host is in the way."""
    document = result.plan.document
    for name, image in zip(document.settings["image"], result.plan.images, strict=True):
        try:
            prepare(image, say)
        except UserError as error:
            raise document.error(("image", name, "path"), str(error)) from None
        except OSError as error:
            raise document.error(("image", name, "path"), describe(error)) from None
    result.data["placement"] = effective_placement(result.plan)
    result.data["preflight"] = warnings(result.data["placement"])


def effective_placement(plan: Plan) -> list[dict[str, Any]]:
    """Where each context of the plan really runs: starts all of them once, and reads it back."""
    import engine

    specs: dict[str, ContextSpec] = {}
    for point in plan.points:
        for spec in point.setup.contexts:
            specs.setdefault(spec.name, spec)
    for spec in specs.values():
        if spec.cpus and (wrong := check_cpus(spec.cpus)):
            document = plan.document
            raise document.error(("context", spec.name, "cpus"), wrong)
    found = []
    with engine.Engine() as opened:
        for spec in specs.values():
            context = opened.add_context(
                spec.name,
                cpus=list(spec.cpus) if spec.cpus else None,
                poll_max_ns=spec.poll_max_ns,
                backend=spec.aio,
                queue_depth=spec.queue_depth,
            )
            found.append(describe_context(context, spec.cpus))
    return found


class Result:
    """The growing result of a plan, in `FOLDER/result.json`; written whole and renamed after each run."""

    def __init__(self, plan: Plan, folder: Path, data: dict[str, Any]) -> None:
        self.plan = plan
        self.folder = folder
        self.data = data
        self.points = list(plan.points)  # and those that a search has added
        for described in data["points"][len(self.points) :]:
            self.points.append(self._probe(described["settings"], described["index"]))

    @classmethod
    def create(cls, plan: Plan, folder: Path) -> Result:
        if (folder / RESULT_FILE).exists():
            raise UserError(f"{folder}: holds a result already; choose another folder, or --resume it")
        folder.mkdir(parents=True, exist_ok=True)
        document = plan.document
        return cls(
            plan,
            folder,
            {
                "format": FORMAT,
                "title": plan.title,
                "experiment": {"file": document.file, "text": document.text},
                "fingerprint": plan.fingerprint,
                "quick": plan.quick,
                "complete": False,
                "started": _timestamp(),
                "ended": None,
                "host": describe_host(),
                "build": build(),
                "placement": [],
                "preflight": [],
                "plan": {
                    "points": len(plan.points),
                    "repeat": plan.repeat,
                    "estimated_seconds": round(plan.seconds, 1),
                    "sweep": list(plan.sweep_keys),
                    "target": dict(plan.target),
                    "search": asdict(plan.search) if plan.search else None,
                },
                "points": [_describe_point(point) for point in plan.points],
                "runs": [],
            },
        )

    @classmethod
    def resume(cls, plan: Plan, folder: Path) -> Result:
        path = folder / RESULT_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls.create(plan, folder)
        except ValueError:
            raise UserError(f"{path}: is not a result of `engine run`") from None
        if data.get("format") != FORMAT or data.get("fingerprint") != plan.fingerprint:
            raise UserError(f"{path}: is of another plan than this one; choose another folder")
        if data["build"] != build():
            raise UserError(f"{path}: is of another build of the engine; choose another folder")
        data["complete"] = False
        data["plan"]["repeat"] = max([plan.repeat, *(run["repetition"] + 1 for run in data["runs"])])
        return cls(plan, folder, data)

    def wanted(self) -> list[tuple[int, Point]]:
        """The runs that are still to be made."""
        have = {(r["repetition"], r["point"]) for r in self.data["runs"] if not r["discarded"]}
        return [(n, point) for n, point in self.plan.runs(self.points) if (n, point.index) not in have]

    # ---- a search

    def _probe(self, settings: Mapping[str, Any], index: int) -> Point:
        """The point with these settings, of the search that it belongs to."""
        search = self.plan.search
        assert search is not None
        group = _group(settings, search)
        first = next(p for p in self.plan.points if not p.mark and _group(p.settings, search) == group)
        return self.plan.probe(first, settings[search.key], index)

    def _next_probes(self) -> list[dict[str, Any]]:
        """Settings of the points that the searches ask for next, from what was measured."""
        search = self.plan.search
        if search is None:
            return []
        tried: dict[str, dict[int, bool]] = {}
        for point in self.data["points"]:
            if not point["mark"] and point["summary"]:
                value = point["settings"][search.key]
                group = tried.setdefault(_group(point["settings"], search), {})
                group[value] = search.within(point["summary"], value)
        found = []
        for first in (point for point in self.plan.points if not point.mark):
            value = search.next_value(tried.get(_group(first.settings, search), {}))
            if value is not None:
                found.append({**first.settings, search.key: value})
        return found

    def search_on(self) -> bool:
        """Adds the next point of each search; False where all are over."""
        probes = self._next_probes()
        for settings in probes:
            point = self._probe(settings, len(self.points))
            self.points.append(point)
            self.data["points"].append(_describe_point(point))
        self.data["plan"]["points"] = len(self.points)
        return bool(probes)

    def attempts(self, repetition: int, point: Point) -> int:
        """How often this run was made and discarded: a killed sweep may have ended right after that."""
        return sum(1 for r in self.data["runs"] if (r["repetition"], r["point"]) == (repetition, point.index))

    def add(self, run: Mapping[str, Any]) -> None:
        self.data["runs"].append(run)
        point = run["point"]
        own = usable(self.data["runs"], point)
        for other, outlying in zip(own, outliers([r["record"]["engine"]["iops"] for r in own]), strict=True):
            other["outlier"] = outlying
        self.data["points"][point]["summary"] = summarise(own)
        self.write()

    def finish(self) -> None:
        self.data["complete"] = not self.wanted() and not self._next_probes()
        self.data["ended"] = _timestamp()
        self.write()

    def write(self) -> None:
        path = self.folder / RESULT_FILE
        unfinished = path.with_suffix(".part")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(self.data, indent=1, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())  # or a loss of power could leave an empty file under the good name
        os.replace(unfinished, path)


def run_plan(result: Result, observer: Observer) -> None:
    """Makes the runs that are still wanted, and what searches want after them. A run with too much steal is
    made again, once."""
    number = 0
    while True:
        wanted = result.wanted()
        _make(result, observer, wanted, number)
        number += len(wanted)
        if not result.search_on():
            break
    result.finish()


def _make(result: Result, observer: Observer, wanted: Sequence[tuple[int, Point]], done: int) -> None:
    total = done + len(wanted)
    for number, (repetition, point) in enumerate(wanted, done):
        observer.started(number, total, point)
        attempt = 1 + result.attempts(repetition, point)
        run = _run(result.plan, point, repetition, attempt)
        if attempt == 1 and _disturbed(run):
            run["discarded"] = True
            result.add(run)
            run = _run(result.plan, point, repetition, attempt=2)
        run["marked"] = _disturbed(run)
        result.add(run)
        observer.finished(number, total, point, run)


def _disturbed(run: Mapping[str, Any]) -> bool:
    steal: float = run["record"]["engine"]["steal_percent"]
    return steal > STEAL_LIMIT_PERCENT


def _run(plan: Plan, point: Point, repetition: int, attempt: int) -> dict[str, Any]:
    of_point = f"{point.title}: " if point.title else ""
    try:
        record = run_point(point.setup)
    except SettingError as error:
        swept = any(error.path[: len(each.path)] == each.path for each in point.overrides)
        message = f"at {point.title}: {error}" if swept else str(error)
        raise plan.document.error(error.path, message, point.overrides) from None
    except UserError as error:
        raise UserError(f"{of_point}{error}") from None
    if repetition:
        record["engine"]["traces"]["examples"] = []  # those of the first one are enough to look at
    if failed := failures(record):
        raise UserError(f"{of_point}{failed[0]}")
    return {
        "point": point.index,
        "repetition": repetition,
        "attempt": attempt,
        "discarded": False,
        "marked": False,
        "outlier": False,
        "record": record,
    }


def _describe_point(point: Point) -> dict[str, Any]:
    return {
        "index": point.index,
        "settings": dict(point.settings),
        "labels": dict(point.labels),
        "mark": point.mark,
        "mark_label": point.mark_label,
        "title": point.title,
        "options": point.setup.to_json(),
        "summary": None,
    }


def _group(settings: Mapping[str, Any], search: Search) -> str:
    """Of one search all points have the same."""
    return json.dumps({key: value for key, value in settings.items() if key != search.key}, sort_keys=True)


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
