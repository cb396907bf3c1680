"""Results of `engine run`, read back: as they are, and as tables of columns for NumPy or pandas.

pandas.DataFrame(engine.load_results("results/big-lock-…").table("runs"))
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.experiment.errors import UserError
from engine.experiment.runner import FORMAT, RESULT_FILE
from engine.histogram import Histogram

_PERCENTILES = ("50", "99", "99.9")


class Results:
    """One result file. `data` is all of it, as docs of the file's own JSON say; nothing is kept elsewhere."""

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self.path = path
        self.data = data

    @property
    def title(self) -> str:
        return str(self.data["title"])

    @property
    def sweep(self) -> list[str]:
        """The swept keys, in the order of the experiment file."""
        return list(self.data["plan"]["sweep"])

    def table(self, what: str = "points") -> dict[str, list[Any]]:
        """Columns of equal length.

        "points": a row for each point that has runs: swept keys, mark, title, runs, and of each figure the
        median (`iops`) and the extremes (`iops_min`, `iops_max`). "runs": a row for each run, discarded ones
        too. "workloads": a row for each workload of each point. Rates in requests a second, latencies in ns,
        CPU in µs per request, shares from 0 to 1.
        """
        if what == "points":
            rows = [self._point_row(point) for point in self.data["points"] if point["summary"]]
        elif what == "runs":
            rows = [self._run_row(run) for run in self.data["runs"]]
        elif what == "workloads":
            rows = [
                {**self._settings(point), "workload": name, **_columns(job)}
                for point in self.data["points"]
                if point["summary"]
                for name, job in point["summary"].get("jobs", {}).items()
            ]
        else:
            raise ValueError(f"no table is called {what!r}: there are 'points', 'runs' and 'workloads'")
        names = list(dict.fromkeys(name for row in rows for name in row))
        return {name: [row.get(name) for row in rows] for name in names}

    def histogram(self, point: int, way: str = "read", job: str | None = None) -> Histogram:
        """Latencies in ns of all usable runs of a point together, of one job or of all."""
        whole = Histogram()
        for run in self.data["runs"]:
            if run["point"] != point or run["discarded"]:
                continue
            for name, ways in run["record"]["engine"]["histograms"].items():
                if job is None or name == job:
                    whole.merge(Histogram.from_hdr(ways[way]))
        return whole

    def series(self, run: int) -> dict[str, list[Any]]:
        """Columns of what a run did over time, a row for each slice and job: end and length of the slice in
        seconds, IOPS, and p50, p99 and max in ns. `run` counts the rows of table("runs")."""
        rows = [
            {
                "end": one["end"],
                "seconds": one["seconds"],
                "job": name,
                "iops": (job["reads"] + job["writes"]) / one["seconds"],
                **{key: job[key] for key in ("reads", "writes", "p50", "p99", "max")},
            }
            for one in self.data["runs"][run]["record"]["engine"]["series"]
            for name, job in one["jobs"].items()
        ]
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the result file, where `load_results` finds it again: a file, or a folder that is there."""
        place = Path(path)
        if place.is_dir():
            place /= RESULT_FILE
        place.write_text(json.dumps(self.data, indent=1, default=str) + "\n", encoding="utf-8")
        return place

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page that `engine report` makes."""
        from engine.report.page import page

        place = Path(path)
        place.write_text(page(self.data), encoding="utf-8")
        return place

    def _repr_html_(self) -> str:
        from engine.report.page import excerpt

        return excerpt(self.data)

    def __repr__(self) -> str:
        runs = sum(1 for run in self.data["runs"] if not run["discarded"])
        done = f"{runs} runs of {len(self.data['points'])} points"
        return f"<Results: {self.title}, {done}{'' if self.data['complete'] else ', not complete'}>"

    def _settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        own = {key: point["settings"].get(key) for key in self.sweep}
        return {"point": point["index"], **own, "mark": point["mark"], "title": point["title"]}

    def _point_row(self, point: Mapping[str, Any]) -> dict[str, Any]:
        figures = {name: value for name, value in point["summary"].items() if name != "jobs"}
        return {**self._settings(point), "runs": point["summary"]["runs"], **_columns(figures)}

    def _run_row(self, run: Mapping[str, Any]) -> dict[str, Any]:
        engine = run["record"]["engine"]
        point = self.data["points"][run["point"]]
        return {
            **self._settings(point),
            **{key: run[key] for key in ("repetition", "attempt", "discarded", "marked")},
            "outlier": run.get("outlier", False),
            "settled": None if (found := engine.get("settled")) is None else found["steady"],
            "iops": engine["iops"],
            "requests": engine["requests"],
            "seconds": engine["seconds"],
            "cpu_us_per_request": engine["cpu"]["us_per_request"],
            "lock_wait_share": engine["lock_wait"]["share"],
            "steal_percent": engine["steal_percent"],
            "other_percent": engine["other_percent"],
        }


def _columns(figures: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, spread in figures.items():
        if isinstance(spread, dict):
            row |= {name: spread["median"], f"{name}_min": spread["min"], f"{name}_max": spread["max"]}
    return row


def load_results(path: str | os.PathLike[str]) -> Results:
    """Of a result file, or the folder that holds it. UserError, on one line, for what is none."""
    place = Path(path)
    if place.is_dir():
        place /= RESULT_FILE
    try:
        data = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}: give a folder that `engine run` has made") from None
    except ValueError as error:
        raise UserError(f"{place}: is not a result of `engine run`: {error}") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{place}: is not a result of `engine run`, or of another version of it")
    return Results(place, data)
