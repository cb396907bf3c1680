"""`engine run`: plan, host, where each context runs, progress, then the table, a picture and a file."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from engine.cli.bench import refuse_debug_build
from engine.cli.progress import Progress
from engine.experiment.document import Document
from engine.experiment.errors import UsageError
from engine.experiment.plan import Plan, make_plan
from engine.experiment.runner import RESULT_FILE, Result, get_ready, run_plan
from engine.report.experiment_table import (
    host_lines,
    note_lines,
    placement_lines,
    plan_lines,
    preflight_lines,
    result_lines,
)

PICTURE_FILE = "picture.svg"


def run(arguments: Namespace) -> int:
    if arguments.resume and not arguments.output:
        raise UsageError("--resume needs the folder to go on with: -o DIR")
    plan = make_plan(Document.read(arguments.experiment), arguments.repeat, arguments.quick)
    if arguments.plan:
        _say(plan.title, *plan_lines(_description(plan)))
        return 0
    refuse_debug_build(arguments.allow_debug_build)
    folder = Path(arguments.output or _default_folder(plan))
    result = Result.resume(plan, folder) if arguments.resume else Result.create(plan, folder)
    _say(plan.title, *host_lines(result.data), *plan_lines(_description(plan)))
    get_ready(result, _say)
    _say(*placement_lines(result.data["placement"]), *preflight_lines(result.data), "")
    progress = Progress(sys.stderr if sys.stderr.isatty() else None, arguments.progress_fd)
    try:
        with progress:
            run_plan(result, progress)
    except KeyboardInterrupt:
        if not result.data["runs"]:
            raise
        result.write()
        _report(result)
        print(
            f"engine: stopped by Ctrl-C; go on with: engine run {arguments.experiment} --resume -o {folder}",
            file=sys.stderr,
        )
        return 130
    _report(result)
    return 0


def _description(plan: Plan) -> dict[str, Any]:
    """What there is to say of a plan, without its points' details."""
    search = plan.search
    return {
        "points": [
            {
                "labels": {key: label for key, label in p.labels.items() if not search or key != search.key},
                "mark": p.mark_label if p.mark else None,
            }
            for p in plan.points
        ],
        "search": search,
        "repeat": plan.repeat,
        "seconds": plan.seconds,
        "counted": plan.counted,
        "quick": plan.quick,
    }


def _report(result: Result) -> None:
    from engine.report.picture import draw

    data = result.data
    picture = result.folder / PICTURE_FILE
    picture.write_text(draw(data), encoding="utf-8")
    _say(*result_lines(data), "", *note_lines(data), "")
    _say(f"picture  {picture}", f"figures  {result.folder / RESULT_FILE}")


def _say(*lines: str) -> None:
    print("\n".join(lines), flush=True)


def _default_folder(plan: Plan) -> str:
    name = Path(plan.document.file).stem
    return f"results/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
