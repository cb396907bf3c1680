"""Runs a plan: images, placement, all runs in interleaved order, and the result file after each of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from engine.experiment.errors import UserError
from engine.experiment.host import STEAL_LIMIT_PERCENT, check_cpus, describe_host
from engine.experiment.images import prepare
from engine.experiment.measure import describe_context
from engine.experiment.model import ContextSpec
from engine.experiment.plan import Plan, Point
from engine.experiment.preflight import warnings
from engine.experiment.processes import run_point
from engine.experiment.record import build, failures
from engine.experiment.summary import outliers, summarise, usable

RESULT_FILE = "result.json"
FORMAT = "blkengine experiment 1"


class Observer(Protocol):
    """Who watches a run, for progress."""

    def started(self, number: int, total: int, point: Point) -> None: ...
    def finished(self, number: int, total: int, point: Point, run: Mapping[str, Any]) -> None: ...


def get_ready(result: Result, say: Callable[[str], None]) -> None:
    """Before the first run: the images, where contexts run, and what of the host is in the way."""
    for image in result.plan.images:
        prepare(image, say)
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
        return cls(plan, folder, data)

    def wanted(self) -> list[tuple[int, Point]]:
        """The runs that are still to be made."""
        have = {(r["repetition"], r["point"]) for r in self.data["runs"] if not r["discarded"]}
        return [(n, point) for n, point in self.plan.runs() if (n, point.index) not in have]

    def add(self, run: Mapping[str, Any]) -> None:
        self.data["runs"].append(run)
        point = run["point"]
        own = usable(self.data["runs"], point)
        for other, outlying in zip(own, outliers([r["record"]["engine"]["iops"] for r in own]), strict=True):
            other["outlier"] = outlying
        self.data["points"][point]["summary"] = summarise(own)
        self.write()

    def finish(self) -> None:
        self.data["complete"] = not self.wanted()
        self.data["ended"] = _timestamp()
        self.write()

    def write(self) -> None:
        path = self.folder / RESULT_FILE
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.data, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(unfinished, path)


def run_plan(result: Result, observer: Observer) -> None:
    """Makes the runs that are still wanted. A run with too much steal is made again, once."""
    wanted = result.wanted()
    for number, (repetition, point) in enumerate(wanted):
        observer.started(number, len(wanted), point)
        run = _run(point, repetition, attempt=1)
        if run["record"]["engine"]["steal_percent"] > STEAL_LIMIT_PERCENT:
            run["discarded"] = True
            result.add(run)
            run = _run(point, repetition, attempt=2)
            run["marked"] = run["record"]["engine"]["steal_percent"] > STEAL_LIMIT_PERCENT
        result.add(run)
        observer.finished(number, len(wanted), point, run)
    result.finish()


def _run(point: Point, repetition: int, attempt: int) -> dict[str, Any]:
    of_point = f"{point.title}: " if point.title else ""
    try:
        record = run_point(point.setup)
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


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
