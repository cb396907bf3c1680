"""The plan of an experiment: the points of its sweep and its marks, and the order in which they are run.

A point of the sweep is one element of the cross product. A mark is a figure to hold the others against: its
own settings stand in for the sweep's, and it is measured once for each combination of the sweep keys that it
leaves alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.experiment.document import Document, ImageSpec, Override, flatten
from engine.experiment.errors import DocumentError
from engine.experiment.model import Setup

# Python, the engine and the workers start and end in about this time, for each run.
OVERHEAD_SECONDS = 0.25
QUICK_SECONDS = 0.2
MAX_POINTS = 10_000


@dataclass(frozen=True)
class Point:
    index: int
    settings: Mapping[str, Any]  # sweep key: value, in the order of the file
    labels: Mapping[str, str]  # the same values for people
    mark: str | None
    setup: Setup

    @property
    def title(self) -> str:
        return " · ".join([*self.labels.values(), *([self.mark_label] if self.mark else [])])

    @property
    def mark_label(self) -> str:
        return (self.mark or "").replace("-", " ")


@dataclass(frozen=True)
class Plan:
    document: Document
    title: str
    points: tuple[Point, ...]
    repeat: int
    quick: bool
    images: tuple[ImageSpec, ...]
    sweep_keys: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """An estimate; a workload that runs until a count is not in it."""
        return self.repeat * sum(point.setup.seconds + OVERHEAD_SECONDS for point in self.points)

    @property
    def counted(self) -> bool:
        """Whether some workload ends by a count, so that nobody knows when."""
        return any(w.count and not w.runtime for point in self.points for w in point.setup.workloads)

    @property
    def fingerprint(self) -> str:
        """The same for plans whose runs may stand in one result."""
        setups = [[point.setup.to_json(), point.mark, point.settings] for point in self.points]
        return hashlib.sha256(json.dumps([setups, self.quick], sort_keys=True).encode()).hexdigest()

    def runs(self) -> Iterator[tuple[int, Point]]:
        """Every (repetition, point), repetitions interleaved: a drift of the machine falls on all alike."""
        for repetition in range(self.repeat):
            for point in self.points:
                yield repetition, point


def make_plan(document: Document, repeat: int | None = None, quick: bool = False) -> Plan:
    run = document.single("run")
    sweep = _sweep(document)
    if any(override.key == "run.repeat" for values in sweep.values() for override in values):
        raise DocumentError(document.file, document.line(("sweep",)), "run.repeat", "cannot be swept")
    labels = _Labels(document, sweep)
    combinations: list[tuple[str | None, list[Override], list[Override]]] = [
        (None, list(product), []) for product in itertools.product(*sweep.values())
    ]
    for mark in document.tree.get("mark", {}):
        own = _mark(document, mark)
        taken = {override.key for override in own}
        left = [values for key, values in sweep.items() if key not in taken]
        combinations += [(mark, list(product), own) for product in itertools.product(*left)]
    if len(combinations) > MAX_POINTS:
        message = f"makes {len(combinations)} points; at most {MAX_POINTS} are run"
        raise DocumentError(document.file, document.line(("sweep",)), "sweep", message)
    points: list[Point] = []
    for mark, product, own in combinations:
        setup = document.setup([*product, *own])
        settings = {override.key: override.value for override in product}
        shown = {override.key: labels.of(override) for override in product}
        points.append(Point(len(points), settings, shown, mark, _shorten(setup) if quick else setup))
    title = run["title"] or document.file.rpartition("/")[2].removesuffix(".toml").replace("-", " ")
    repeat = 1 if quick and repeat is None else repeat or run["repeat"]
    return Plan(document, title, tuple(points), repeat, quick, tuple(document.images()), tuple(sweep))


def _sweep(document: Document) -> dict[str, list[Override]]:
    sweep: dict[str, list[Override]] = {}
    for key, values in flatten(document.tree.get("sweep", {})).items():
        if not isinstance(values, list) or not values:
            line = document.line(("sweep", key))
            raise DocumentError(document.file, line, f"sweep: {key}", "must be a list of values to try")
        sweep[key] = [document.override(("sweep",), key, value) for value in values]
    return sweep


def _mark(document: Document, mark: str) -> list[Override]:
    table = flatten(document.tree["mark"][mark])
    if not table:
        raise document.error(("mark", mark), "is empty: a mark has settings of its own")
    return [document.override(("mark", mark), key, value) for key, value in table.items()]


def _shorten(setup: Setup) -> Setup:
    """For --quick: the same point, just long enough to see that everything works."""
    workloads = tuple(
        replace(workload, runtime=min(workload.runtime or QUICK_SECONDS, QUICK_SECONDS))
        for workload in setup.workloads
    )
    return replace(setup, workloads=workloads, warmup=min(setup.warmup, QUICK_SECONDS / 4))


class _Labels:
    """What people read for a swept value: the file's [labels], else the value in the words of the field."""

    def __init__(self, document: Document, sweep: Mapping[str, list[Override]]) -> None:
        self.texts: dict[str, str] = {}
        for name, text in flatten(document.tree.get("labels", {})).items():
            if not isinstance(text, str):
                raise document.error(("labels", name), "must be a text")
            self.texts[name] = text
        # A number of contexts says enough, unless two values of one key have the same number.
        self.by_count = {
            key
            for key, values in sweep.items()
            if key.endswith((".queues", ".contexts"))
            and all(isinstance(override.value, list) for override in values)
            and len({len(set(override.value)) for override in values}) == len(values)
        }

    def of(self, override: Override) -> str:
        value = override.value
        written = plain(value)
        if written in self.texts:
            return self.texts[written]
        if override.key in self.by_count:
            contexts = len(set(value))
            return f"{contexts} context{'s' if contexts > 1 else ''}"
        if isinstance(value, (list, str, dict)):
            return written
        return f"{override.key.rpartition('.')[2]} {written}"


def plain(value: Any) -> str:
    """A value of the file on one line, without quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "+".join(plain(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{key}={plain(item)}" for key, item in flatten(value).items())
    return str(value)
