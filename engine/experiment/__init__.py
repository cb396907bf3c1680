"""Experiments: a topology, a graph and a workload, measured at every point of a sweep.

    import engine.experiment
    results = engine.experiment.run("bench/experiments/filters.toml", repeat=3)
    results.table("points")  # columns; in a notebook, `results` by itself shows its pictures

`document` reads the TOML file, `plan` makes the points, `measure` runs one of them in one process, `runner`
all of them, `summary`, `answers` and `engine.report` say what came out. `engine bench` measures a single
point.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.experiment.api import run
    from engine.experiment.errors import UserError
    from engine.experiment.results import Results, load_results

__all__ = ["Results", "UserError", "load_results", "run"]

_MODULES = {"run": "api", "UserError": "errors", "Results": "results", "load_results": "results"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
