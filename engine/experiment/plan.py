"""The plan of an experiment: the points of its sweep and its marks, and the order in which they are run.

A point of the sweep is one element of the cross product of its axes: a key of [sweep] is one, with its
values, and so is a table [zip.NAME], whose keys change together. A mark is a figure to hold the others
against: its own settings stand in for the sweep's, and it is measured once for each combination of the axes
that it leaves alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.experiment.document import Document, ImageSpec, Override, flatten
from engine.experiment.errors import DocumentError
from engine.experiment.model import Setup
from engine.experiment.search import Search, search_of

# Python, the engine and the workers start and end in about this time, for each run.
OVERHEAD_SECONDS = 0.25
QUICK_SECONDS = 0.2
MAX_POINTS = 10_000
_RANGE = re.compile(r"(?P<low>\d+)\s*\.\.\s*(?P<high>\d+) in (?P<steps>\d+) (?P<equal>equal )?steps")


@dataclass(frozen=True)
class Step:
    """One place on an axis."""

    overrides: tuple[Override, ...]
    label: str  # for people


@dataclass(frozen=True)
class Axis:
    name: str  # the key, or that of the zip
    keys: frozenset[str]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Point:
    index: int
    settings: Mapping[str, Any]  # by axis, the value or the zip's label; and each key of a zip
    labels: Mapping[str, str]  # by axis, for people
    mark: str | None
    setup: Setup
    steps: Mapping[str, Step]  # by axis
    overrides: tuple[Override, ...] = ()  # what it sets beside the file's own values

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
    sweep_keys: tuple[str, ...]  # what is searched for is the last of them
    target: Mapping[str, Any]  # latency in seconds, 0: none; percentile
    search: Search | None = None  # then its first points are in `points`, and `probe` makes the others

    @property
    def seconds(self) -> float:
        """An estimate; a workload that runs until a count is not in it. Of a search, the most."""
        most = self.search.most if self.search else 1
        return self.repeat * sum(
            (point.setup.seconds + OVERHEAD_SECONDS) * (1 if point.mark else most) for point in self.points
        )

    @property
    def counted(self) -> bool:
        """Whether some workload ends by a count or with its recording, so that nobody knows when."""
        return any(not w.seconds for point in self.points for w in point.setup.workloads)

    @property
    def fingerprint(self) -> str:
        """The same for plans whose runs may stand in one result."""
        setups = [[point.setup.to_json(), point.mark, point.settings] for point in self.points]
        whole = [setups, self.quick, *([asdict(self.search)] if self.search else [])]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def runs(self, points: Sequence[Point] | None = None) -> Iterator[tuple[int, Point]]:
        """Every (repetition, point), repetitions interleaved: a drift of the machine falls on all alike."""
        for repetition in range(self.repeat):
            for point in self.points if points is None else points:
                yield repetition, point

    def probe(self, first: Point, value: int, index: int) -> Point:
        """Another point of the search that begins with `first`."""
        assert self.search is not None
        return _point(self.document, index, None, first.steps, [], self.quick, (self.search, value))


def make_plan(document: Document, repeat: int | None = None, quick: bool = False) -> Plan:
    run = document.single("run")
    axes = _axes(document)
    if any("run.repeat" in axis.keys for axis in axes):
        raise DocumentError(document.file, document.line(("sweep",)), "run.repeat", "cannot be swept")
    combinations: list[tuple[str | None, dict[str, Step], list[Override]]] = [
        (None, steps, []) for steps in _combine(axes)
    ]
    for mark in document.tree.get("mark", {}):
        own = _mark(document, mark)
        taken = {override.key for override in own}
        left = [axis for axis in axes if not axis.keys & taken]
        combinations += [(mark, steps, own) for steps in _combine(left)]
    if len(combinations) > MAX_POINTS:
        message = f"makes {len(combinations)} points; at most {MAX_POINTS} are run"
        raise DocumentError(document.file, document.line(("sweep",)), "sweep", message)
    search = search_of(document, frozenset(key for axis in axes for key in axis.keys))
    first = (search, search.low) if search else None
    points = [
        _point(document, index, mark, steps, own, quick, None if mark else first)
        for index, (mark, steps, own) in enumerate(combinations)
    ]
    if search is not None:
        _check_search(document, search, points)
    title = run["title"] or document.file.rpartition("/")[2].removesuffix(".toml").replace("-", " ")
    target = {key: document.single("target")[key] for key in ("latency", "percentile")}
    repeat = 1 if quick and repeat is None else repeat or run["repeat"]
    return Plan(
        document,
        title,
        tuple(points),
        repeat,
        quick,
        tuple(document.images()),
        (*(a.name for a in axes), *([search.key] if search else [])),
        target,
        search,
    )


def _point(
    document: Document,
    index: int,
    mark: str | None,
    steps: Mapping[str, Step],
    own: Sequence[Override],
    quick: bool,
    probe: tuple[Search, int] | None,
) -> Point:
    overrides = [override for step in steps.values() for override in step.overrides]
    settings: dict[str, Any] = {name: step.label for name, step in steps.items()}
    shown = {name: step.label for name, step in steps.items()}
    if probe is not None:
        search, value = probe
        overrides.append(Override(search.key, value, document.line(("target", "search"))))
        shown[search.key] = f"{search.what} {value}"
    settings |= {override.key: override.value for override in overrides}
    together = (*overrides, *own)
    setup = document.setup(together)
    return Point(index, settings, shown, mark, _shorten(setup) if quick else setup, steps, together)


def _check_search(document: Document, search: Search, points: Sequence[Point]) -> None:
    for point in points:
        workload = next((w for w in point.setup.workloads if w.name == search.workload), None)
        if workload is not None and not workload.latency:
            raise document.error(("workload", workload.name, "latency"), "is what [target] searches by")


def _combine(axes: list[Axis]) -> Iterator[dict[str, Step]]:
    for steps in itertools.product(*(axis.steps for axis in axes)):
        yield {axis.name: step for axis, step in zip(axes, steps, strict=True)}


def _axes(document: Document) -> list[Axis]:
    sweep: dict[str, list[Override]] = {}
    for key, written in flatten(document.tree.get("sweep", {})).items():
        values = _spread_out(document, key, written)
        sweep[key] = [document.override(("sweep",), key, value) for value in values]
    zips = {name: _zip(document, name) for name in document.tree.get("zip", {})}
    lists = dict(sweep)
    for name, keys in zips.items():
        for key, values in keys.items():
            if key in lists:
                raise document.error(("zip", name, key), "is swept already, and a key belongs to one axis")
            lists[key] = values
    labels = _Labels(document, lists)
    axes = [
        Axis(key, frozenset([key]), tuple(Step((each,), labels.of(each)) for each in values))
        for key, values in sweep.items()
    ]
    for name, keys in zips.items():
        given = document.tree["zip"][name].get("labels")
        steps = []
        for number, overrides in enumerate(zip(*keys.values(), strict=True)):
            label = given[number] if given else " ".join(labels.of(each) for each in overrides)
            steps.append(Step(overrides, label))
        axes.append(Axis(name, frozenset(keys), tuple(steps)))
    return axes


def _spread_out(document: Document, key: str, written: Any) -> list[Any]:
    """The values of a key of [sweep]: a list, or "1000..1000000 in 7 steps", each so many times the one
    before; "in 7 equal steps": each so much more."""
    line = document.line(("sweep", key))
    if isinstance(written, list) and written:
        return written
    match = _RANGE.fullmatch(written) if isinstance(written, str) else None
    if match is None:
        message = 'must be a list of values to try, or a range such as "1000..1000000 in 7 steps"'
        raise DocumentError(document.file, line, f"sweep: {key}", message)
    low, high, steps = (int(match[name]) for name in ("low", "high", "steps"))
    if not 0 < low < high or not 2 <= steps <= MAX_POINTS:
        message = f"{written!r} must go from more than 0 to more than that, in 2 steps or more"
        raise DocumentError(document.file, line, f"sweep: {key}", message)
    shares = [number / (steps - 1) for number in range(steps)]
    if match["equal"]:
        values = [round(low + (high - low) * share) for share in shares]
    else:
        values = [round(low * (high / low) ** share) for share in shares]
    return list(dict.fromkeys(values))


def _zip(document: Document, name: str) -> dict[str, list[Override]]:
    """The keys of [zip.NAME]: lists of one length, of which the n-th values belong together."""
    table = document.tree["zip"][name]
    if not isinstance(table, dict):
        raise document.error(("zip", name), "must be a table: [zip.NAME]")
    table = dict(table)
    labels = table.pop("labels", None)
    keys: dict[str, list[Override]] = {}
    lengths = set()
    for key, values in flatten(table).items():
        if not isinstance(values, list) or not values:
            raise document.error(("zip", name, key), "must be a list of values to try")
        keys[key] = [document.override(("zip", name), key, value) for value in values]
        lengths.add(len(values))
    if not keys:
        raise document.error(("zip", name), "is empty: a zip has keys that change together")
    if len(lengths) != 1:
        raise document.error(
            ("zip", name), f"its lists have {sorted(lengths)} values: make them equally long"
        )
    if labels is not None and (
        not isinstance(labels, list)
        or len(labels) not in lengths
        or not all(isinstance(label, str) and label for label in labels)
    ):
        raise document.error(("zip", name, "labels"), f"must be a list of {max(lengths)} texts")
    return keys


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
        written = dict.fromkeys(plain(each.value) for values in sweep.values() for each in values)
        for name in self.texts:
            if name not in written:
                message = f"no swept value is written so; there is {', '.join(written) or 'none'}"
                raise document.error(("labels", name), message)
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
