"""A result of `engine run` as text: the plan, the host, the placement, the table of medians, the notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.experiment import answers
from engine.experiment.answers import STEPS_LEAST
from engine.experiment.host import OTHER_LIMIT_PERCENT, format_cpu_list
from engine.experiment.search import KEPT_UP, Search
from engine.report import figures
from engine.report.rows import column_name, read_rows
from engine.report.table import blank_repeats, format_table
from engine.report.workloads import workload_table


def host_lines(data: Mapping[str, Any]) -> list[str]:
    host, build = data["host"], data["build"]
    cpus = figures.plural(len(host["cpus_allowed"]), "CPU")
    kind = "release build" if build["optimised"] and not build["sanitized"] else "DEBUG BUILD"
    parts = [host["cpu_model"], cpus, "virtual machine" if host["virtual_machine"] else "", host["kernel"]]
    return [
        f"host       {', '.join(part for part in parts if part)}",
        f"engine     {build['version']}, {build['compiler']}, liburing {build['liburing']}, {kind}",
    ]


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    points, repeat = plan["points"], plan["repeat"]
    about = figures.seconds(plan["seconds"])
    about += " and what the counted workloads take" if plan["counted"] else ""
    size = f"{figures.plural(len(points), 'point')} {figures.TIMES} {figures.plural(repeat, 'repetition')}"
    lines = [
        f"plan       {size} = {figures.plural(len(points) * repeat, 'run')}, about {about}"
        + (" (quick: not for quoting)" if plan["quick"] else "")
    ]
    for key in dict.fromkeys(key for point in points for key in point["labels"]):
        values = dict.fromkeys(point["labels"][key] for point in points if key in point["labels"])
        lines.append(f"           {key}: {', '.join(values)}")
    if plan.get("search"):
        lines.append(f"           {search_line(plan['search'])}")
    for mark in dict.fromkeys(point["mark"] for point in points if point["mark"]):
        lines.append(f"           beside them, as a mark: {mark}")
    return lines


def search_line(search: Search) -> str:
    return (
        f"each searched: the highest {search.key} in {search.low}..{search.high} with p{search.percentile} "
        f"within {figures.duration_ns(search.latency_ns)}, at most {figures.plural(search.most, 'point')}"
    )


def placement_lines(placement: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for context in placement:
        asked = context["requested_cpus"]
        where = f"CPU {format_cpu_list(context['effective_cpus'])}"
        where += f" (asked for {format_cpu_list(asked)})" if asked is not None else " (not pinned)"
        node = f", NUMA node {context['numa_node']}" if context["numa_node"] >= 0 else ""
        poll = f"polls up to {figures.duration_ns(context['poll_max_ns'])}"
        lines.append(f"{context['name']} runs on {where}{node}; {figures.backend(context)}; {poll}")
    return [f"{'placement' if not number else '':11}{line}" for number, line in enumerate(lines)]


def preflight_lines(data: Mapping[str, Any]) -> list[str]:
    return [
        f"{'warning' if not number else '':11}{line}" for number, line in enumerate(data.get("preflight", []))
    ]


def result_lines(data: Mapping[str, Any]) -> list[str]:
    """One row for each point that has runs: medians, and the spread of the rate. Where a point has several
    workloads, or a replay, a second table with a row for each of them."""
    keys = list(data["plan"]["sweep"])
    head = [*(column_name(key) for key in keys), "mark"]
    words = len(head)
    head += ["IOPS", "min … max", figures.TIMES, "CPU/request", "lock wait", "p50", "p99"]
    rows = []
    for row in read_rows(data):
        spread = row.summary["iops"]
        rows.append(
            [
                *(row.labels.get(key, "") for key in keys),
                (row.mark or "") + (" *" if row.disturbed else ""),
                figures.count(spread["median"]),
                f"{figures.count(spread['min'])} … {figures.count(spread['max'])}",
                figures.ratio(row.ratio),
                figures.microseconds(row.median("cpu_us_per_request")),
                figures.percent(row.median("lock_wait_share")),
                figures.duration_ns(row.median("latency_p50_ns")),
                figures.duration_ns(row.median("latency_p99_ns")),
            ]
        )
    if not rows:
        return ["  no run has ended"]
    lines = format_table(head, blank_repeats(rows, len(keys) - 1) if keys else rows, left=words)
    head, rows, words = workload_table(data)
    if rows:
        lines += ["", *format_table(head, blank_repeats(rows, words - 1), left=words)]
    return lines


def note_lines(data: Mapping[str, Any]) -> list[str]:
    """What a reader must know before quoting a figure."""
    lines = ["IOPS are medians of " + figures.plural(data["plan"]["repeat"], "run") + _baseline(data)]
    if any(node_is_buffered(node) for point in data["points"] for node in point["options"]["nodes"]):
        lines.append(
            "page cache: every read is served from memory; it is what the software costs, not how fast a "
            "disk is"
        )
    cpus = len(data["host"]["cpus_allowed"])
    if cpus < 8:
        lines.append(f"{cpus} CPUs say what one context does, then two; they say nothing of how it scales")
    lines += [*answer_lines(data), *_exceptions(data)]
    if data["quick"]:
        lines.append("a quick run: it shows that all works; do not quote it")
    if not data["complete"]:
        lines.append("the plan did not run to its end")
    return [f"note: {line}" for line in lines]


def answer_lines(data: Mapping[str, Any]) -> list[str]:
    """What the points say together."""
    lines = []
    for knee in answers.knees(data):
        of = f"{knee.group}: " if knee.group else ""
        if knee.beyond is None:
            lines.append(f"{of}every rate was kept up with, to {figures.count(knee.asked)} a second")
            continue
        kept = f"{figures.count(knee.asked)} a second are kept up with, p99 {figures.duration_ns(knee.p99)}"
        beyond = f"{figures.count(knee.beyond)} asked: {figures.count(knee.beyond_iops)} done, p99 "
        beyond += figures.duration_ns(knee.beyond_p99)
        lines.append(
            f"{of}{kept if knee.asked else 'not even the lowest rate is kept up with'}; with {beyond}"
        )
    for best in answers.reached(data):
        target = data["plan"]["target"]
        within = f"p{target['percentile']} within {figures.duration_ns(target['latency'] * 1e9)}"
        of = f"{best.group}: " if best.group else ""
        if best.label is None:
            lines.append(f"{of}nothing has its {within}")
        else:
            with_ = f" with {best.label}" if best.label else ""
            lines.append(
                f"{of}most with {within}: {figures.count(best.iops)} a second{with_} "
                f"({figures.duration_ns(best.latency_ns)})"
            )
    lines += [_searched(found) for found in answers.searched(data)]
    for law in answers.scalings(data):
        if len(law.points) >= STEPS_LEAST:
            of = f"{law.group}: " if law.group else ""
            lines.append(
                f"{of}scalability law: {figures.count(law.first)} a second for one context, contention "
                f"{figures.percent(law.contention)}, coherence {100 * law.coherence:.2f} %"
            )
    return lines


def _searched(found: answers.Searched) -> str:
    search = found.search
    of = f"{found.group}: " if found.group else ""
    within = f"p{search.percentile} within {figures.duration_ns(search.latency_ns)}"
    name = f"{search.workload}.{search.what}"
    beyond = f"{found.beyond} has {figures.duration_ns(found.beyond_latency_ns)}"
    if search.what != "iodepth" and found.beyond and found.beyond_iops < KEPT_UP * found.beyond:
        beyond += f", and {figures.count(found.beyond_iops)} of them are done"
    if found.value is None:
        return f"{of}not even the lowest {name} that was tried keeps {within}: {beyond}"
    own = f"{figures.duration_ns(found.latency_ns)}, {figures.count(found.iops)} a second"
    if found.beyond is None:
        return f"{of}{name} {found.value}, the highest that was tried, still keeps {within} ({own})"
    return f"{of}the highest {name} with {within} is {found.value} ({own}); {beyond}"


def node_is_buffered(node: Mapping[str, Any]) -> bool:
    from engine.experiment.model import NodeSpec

    return NodeSpec(node["name"], node["options"]).buffered_file is not None


def _exceptions(data: Mapping[str, Any]) -> list[str]:
    """Runs that were disturbed, and contexts that did not run where they should."""
    lines = []
    if discarded := sum(1 for run in data["runs"] if run["discarded"]):
        runs = figures.plural(discarded, "run")
        lines.append(f"{runs} discarded and made again: more than 2 % of the CPU time went to other guests")
    if marked := sum(1 for run in data["runs"] if run["marked"]):
        lines.append(f"{figures.plural(marked, 'run')} kept with more than 2 % steal, marked with *")
    if far := sum(1 for run in data["runs"] if run.get("outlier")):
        lines.append(f"{figures.plural(far, 'run')} far from the median of the point; counted all the same")
    unissued = [
        sum(generator.get("unissued", 0) for generator in run["record"]["engine"].get("generators", ()))
        for run in data["runs"]
        if not run["discarded"]
    ]
    if some := sum(1 for number in unissued if number):
        lines.append(
            f"{figures.plural(some, 'run')} of an open loop ended with up to {figures.count(max(unissued))} "
            "requests due that were never started: percentiles count them, with their wait until the end"
        )
    found = [run["record"]["engine"].get("settled") for run in data["runs"] if not run["discarded"]]
    if moving := [one for one in found if one is not None and not one["steady"]]:
        drift = max(abs(one["drift"]) for one in moving)
        spread = max(one["spread"] for one in moving)
        lines.append(
            f"{figures.plural(len(moving), 'run')} had not settled: in the second half the rate moved by "
            f"up to {figures.percent(drift)}, its slices lie {figures.percent(spread)} apart; run longer"
        )
    others = [run["record"]["engine"]["other_percent"] for run in data["runs"] if not run["discarded"]]
    if busy := sum(1 for percent in others if percent > OTHER_LIMIT_PERCENT):
        lines.append(
            f"other processes took up to {max(others):.0f} % of the CPU time "
            f"in {figures.plural(busy, 'run')}: measure on a quiet machine"
        )
    astray = {
        context["name"]
        for run in data["runs"]
        for context in run["record"]["engine"]["contexts"]
        if context["requested_cpus"] is not None
        and sorted(context["requested_cpus"]) != sorted(context["effective_cpus"])
    }
    lines += [f"context {name} did not run on the CPUs that were asked for" for name in sorted(astray)]
    return lines


def _baseline(data: Mapping[str, Any]) -> str:
    keys = data["plan"]["sweep"]
    if not keys:
        return ""
    return (
        f"; {figures.TIMES} is against the first row with the same settings but for {column_name(keys[-1])}"
    )
