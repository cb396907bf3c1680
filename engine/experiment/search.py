"""The search for a latency target: the highest depth or rate of a workload that keeps a percentile within it.

Bisection over measured points. What comes next follows from what has been measured and from nothing else, so
that a search that was stopped goes on where it was. It is taken for granted that latency does not fall as the
load rises; where noise says otherwise, the lowest load that fails counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from engine.experiment.document import Document
from engine.experiment.errors import DocumentError

KEPT_UP = 0.98  # of a rate that was asked for
RESOLUTION = 1.02  # a rate and the next that fails: closer is not looked for
_OPTIONS = ("iodepth", "rate-iops")
_RANGE = re.compile(r"(?P<low>\d{1,10})\s*\.\.\s*(?P<high>\d{1,10})")
_DEPTHS = "1..256"


@dataclass(frozen=True)
class Search:
    """Kept in the result as a dictionary."""

    key: str  # "workload.NAME.iodepth" or "workload.NAME.rate-iops"
    low: int
    high: int
    most: int  # points of one search
    percentile: str
    latency_ns: float

    @property
    def workload(self) -> str:
        return self.key.split(".")[1]

    @property
    def what(self) -> str:
        return self.key.rpartition(".")[2]

    def within(self, summary: Mapping[str, Any], value: int) -> bool:
        """Whether a measured point keeps to the target; a rate has to be kept up with, too."""
        job = summary["jobs"][self.workload]
        latency = job[f"latency_p{self.percentile}_ns"]
        if latency is None or latency["median"] > self.latency_ns:
            return False
        if self.what == "iodepth":
            return True
        return done_per_second(job) >= KEPT_UP * value

    def next_value(self, tried: Mapping[int, bool]) -> int | None:
        """What to try after these, of which each was within the target or not; None: it is over."""
        if self.low not in tried:
            return self.low
        if not tried[self.low]:
            return None
        if self.high not in tried:
            return self.high
        good, bad = bounds(tried)
        if good is None or bad is None or len(tried) >= self.most:
            return None
        if bad - good == 1 or (self.what != "iodepth" and bad <= good * RESOLUTION):
            return None
        if bad <= 2 * good:
            return (good + bad) // 2
        return round(math.sqrt(good * bad))


def done_per_second(job: Mapping[str, Any]) -> float:
    """Of the summary of a workload: what its rate counts, which is flushes as well."""
    return float(job["iops"]["median"] + job["flushes_per_second"]["median"])


def bounds(tried: Mapping[int, bool]) -> tuple[int | None, int | None]:
    """The lowest value that fails, and the highest below it that does not."""
    bad = min((value for value, within in tried.items() if not within), default=None)
    good = max((v for v, within in tried.items() if within and (bad is None or v < bad)), default=None)
    return good, bad


def search_of(document: Document, swept: Collection[str]) -> Search | None:
    """The search that [target] asks for; `swept`: keys that belong to an axis."""
    target = document.single("target")
    if target["search"] is None:
        for key in ("range", "points"):
            if key in document.tree.get("target", {}):
                raise document.error(("target", key), "goes with `search`")
        return None

    def error(option: str, text: str) -> DocumentError:
        return document.error(("target", option), text)

    if not target["latency"]:
        raise error("search", "needs `latency`: what is to be kept")
    found = _key(document, target["search"])
    if found is None:
        names = " or ".join(f'"workload.{name}.{_OPTIONS[0]}"' for name in document.settings["workload"])
        raise error(
            "search", f'{target["search"]!r} is not searched for: {names or "a workload"}, or "{_OPTIONS[1]}"'
        )
    key = found
    if key in swept:
        raise error("search", f"{key} is swept already")
    written = target["range"] or (_DEPTHS if key.endswith("iodepth") else "")
    match = _RANGE.fullmatch(written)
    if match is None or not 0 < int(match["low"]) < int(match["high"]):
        raise error("range", f'{written!r} must be the lowest and the highest to try, such as "1000..200000"')
    low, high = int(match["low"]), int(match["high"])
    return Search(key, low, high, target["points"], target["percentile"], target["latency"] * 1e9)


def _key(document: Document, written: str) -> str | None:
    """In full: with one workload, the option alone will do."""
    names = list(document.settings["workload"])
    if written in _OPTIONS and len(names) == 1:
        return f"workload.{names[0]}.{written}"
    known = {f"workload.{name}.{option}" for name in names for option in _OPTIONS}
    return written if written in known else None
