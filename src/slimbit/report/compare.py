"""Two runs side by side: both fronts in one figure, and what each costs at equal accuracy."""

import math
from collections.abc import Iterator
from html import escape
from typing import Any

from slimbit.records.errors import InputError
from slimbit.records.terminal import MISSING, quantity
from slimbit.report.figures import FigureData, accuracy_figure, front_trace, log_ticks, plain, template
from slimbit.report.frames import MetricFrame, ReportData
from slimbit.report.headline import DROPS, cost_at_accuracy, times
from slimbit.report.html import composed
from slimbit.report.still import text_table


def compare_page(first: ReportData, second: ReportData) -> str:
    """The HTML text of a page with two runs; equal data give equal text.

    Args:
        first: What the report of one run shows.
        second: Of the other.

    Raises:
        InputError: They have no cost in common.
    """
    title = f"{first.about.network} and {second.about.network}: two runs"
    return composed("compare", title=title, data=comparison(first, second), still=_still(first, second))


def comparison(first: ReportData, second: ReportData) -> dict[str, Any]:
    """Everything that the page's script draws."""
    metrics = common_metrics(first, second)
    rows = {metric.name: equal_accuracy(first, second, metric.name) for metric in metrics}
    return {
        "names": run_names(first, second),
        "facts": [[name, a, b, a != b] for name, a, b in _facts(first, second)],
        "notes": _notes(first, second),
        "score": first.about.score_name,
        "metrics": [{"name": m.name, "label": m.label, "unit": m.unit, "text": m.text} for m in metrics],
        "figures": {metric.name: _figure(first, second, metric) for metric in metrics},
        "templates": {theme: _template(theme) for theme in ("light", "dark")},
        "rows": rows,
        "fronts": {m.name: [_front(run, m.name) for run in (first, second)] for m in metrics},
    }


def common_metrics(first: ReportData, second: ReportData) -> tuple[MetricFrame, ...]:
    """The costs that both runs have, in the order of the first.

    Raises:
        InputError: There are none.
    """
    theirs = {metric.name for metric in second.metrics}
    found = tuple(metric for metric in first.metrics if metric.name in theirs)
    if not found:
        raise InputError(f"runs to compare must have a cost in common, got {first.about.run} and {second.about.run}")
    return found


def equal_accuracy(first: ReportData, second: ReportData, metric: str) -> list[list[str]]:
    """Accuracy, cost of both runs there, and which is cheaper by how much, as texts; accuracies below both floats.

    Costs are interpolated on log cost along each run's Pareto front, without its points for comparison.
    """
    names = run_names(first, second)
    lower = min(first.about.float_accuracy, second.about.float_accuracy)
    scale = 1.0 if first.about.unit and second.about.unit else abs(lower) / 100
    rows = []
    for drop in DROPS:
        accuracy = lower - drop * scale
        found = [cost_at_accuracy(_ours(run, metric), accuracy) for run in (first, second)]
        texts = [MISSING if cost is None else _bound(reached) + quantity(_short(cost)) for reached, cost in found]
        (_, a), (_, b) = found
        verdict = MISSING
        if a and b:
            exact = {reached for reached, _ in found} == {"exact"}
            factor = f"{'' if exact else 'about '}{times(max(a, b) / min(a, b))}\N{MULTIPLICATION SIGN}"
            verdict = "equal" if a == b else f"{names[a > b]}, {factor}"
        rows.append([f"{accuracy:.2f}{first.about.unit and ' ' + first.about.unit}", *texts, verdict])
    return rows


def run_names(first: ReportData, second: ReportData) -> list[str]:
    """The names of the folders, or the whole paths where those are equal."""
    paths = [first.about.run, second.about.run]
    names = [path.rstrip("/").rsplit("/", 1)[-1] or path for path in paths]
    if paths[0] == paths[1]:
        return [f"{names[0]} (1)", f"{names[0]} (2)"]
    return paths if names[0] == names[1] else names


def _bound(reached: str) -> str:
    """A front whose cheapest point is more accurate than asked for costs no more than that."""
    return "\N{LESS-THAN OR EQUAL TO} " if reached == "at_least" else ""


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _ours(run: ReportData, metric: str) -> list[tuple[float, float]]:
    return [
        (cost, point.accuracy)
        for point in run.points
        if point.kind == "ours" and point.accuracy is not None and (cost := point.costs.get(metric))
    ]


def _front(run: ReportData, metric: str) -> list[list[str]]:
    """Name, accuracy and cost of the points on a front, for people."""
    points = [run.point(number) for number in run.metric(metric).front]
    return [[point.name, point.accuracy_text, point.texts.get(metric, MISSING)] for point in points]


def _facts(first: ReportData, second: ReportData) -> Iterator[tuple[str, str, str]]:
    runs = [
        {
            "run": run.about.run,
            "network": run.about.network,
            f"float {run.about.score_name}": f"{run.about.float_accuracy:.2f}",
            "points": str(sum(point.kind == "ours" for point in run.points)),
            "missing": run.about.missing,
            **run.about.scoring,
            **run.about.provenance,
        }
        for run in (first, second)
    ]
    for name in dict.fromkeys((*runs[0], *runs[1])):
        a, b = (run.get(name, "") or MISSING for run in runs)
        if (a, b) != (MISSING, MISSING):
            yield name, a, b


def _notes(first: ReportData, second: ReportData) -> list[str]:
    """What to know before the two are compared."""
    notes = []
    if first.about.score_name != second.about.score_name:
        notes.append(f"The runs have different scores: {first.about.score_name} and {second.about.score_name}.")
    digests = [run.about.provenance.get("evaluation digest", "") for run in (first, second)]
    if "" in digests:
        notes.append("Whether both runs were scored on the same images is not known.")
    elif digests[0] != digests[1]:
        notes.append("The runs were scored on different images: a difference of accuracies may be due to these.")
    if first.about.activation_bits != second.about.activation_bits:
        notes.append("Activations have different widths, which only bit operations count.")
    return notes


def _figure(first: ReportData, second: ReportData, metric: MetricFrame) -> FigureData:
    traces = [
        front_trace(name, run, metric.name) for name, run in zip(run_names(first, second), (first, second), strict=True)
    ]
    lines = sorted({run.about.float_accuracy for run in (first, second)})
    views = [accuracy_figure(run, metric.name)["layout"]["meta"]["ranges"]["useful"]["y"] for run in (first, second)]
    y = [min(low for low, _ in views), max(high for _, high in views)]
    costs = [math.log10(cost) for trace in traces for cost in trace["x"] if cost]
    x = [min(costs, default=0.0) - 0.1, max(costs, default=1.0) + 0.1]
    unit = f" ({first.about.unit})" if first.about.unit else ""
    return {
        "data": traces,
        "layout": {
            "xaxis": {
                "type": "log",
                "title": {"text": plain(metric.title)},
                "range": x,
                "dtick": log_ticks(x),
                "tickformat": "~s",
                "tickangle": 0,
            },
            "yaxis": {"title": {"text": f"{plain(first.about.score_name)}{unit}"}, "range": y},
            "shapes": [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": line, "y1": line} for line in lines],
        },
    }


def _template(theme: str) -> dict[str, Any]:
    made = template(theme)
    front, base = made["data"]["scatter"][1:3]
    return {**made, "data": {"scatter": [front, base]}}


def _still(first: ReportData, second: ReportData) -> str:
    """What is shown where scripts do not run."""
    metric = common_metrics(first, second)[0]
    heads = [first.about.score_name, *run_names(first, second), "cheaper"]
    return "".join(
        (
            f"<h1>{escape(' and '.join(run_names(first, second)))}</h1>",
            f"<p>{escape(metric.title)} at equal {escape(first.about.score_name)}</p>",
            text_table(heads, equal_accuracy(first, second, metric.name)),
            *(f"<p>{escape(note)}</p>" for note in _notes(first, second)),
            text_table(["", *run_names(first, second)], list(_facts(first, second))),
        )
    )
