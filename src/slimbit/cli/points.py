"""`slimbit points`: what a run has measured."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slimbit.records.cost import METRICS
from slimbit.records.errors import InputError
from slimbit.records.point import Frontier, FrontierPoint

SCHEMA = 1
COLUMNS = ("number", "key", "state", "policy", "setting", "baseline", "pareto", "accuracy", "accuracy_low",
           "accuracy_high", *METRICS, "metric", "price", "plan", "error")  # fmt: skip
WIDE = 100
BESIDE = ("esn_analog", "esn_digital", "esn_filterwise")


def points(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    pareto: Annotated[bool, typer.Option("--pareto", help="Only points that no other point dominates.")] = False,
    metric: Annotated[str | None, typer.Option(help="Cost metric of the Pareto front; default: the run's.")] = None,
    storage: Annotated[str | None, typer.Option(help="Address of the study, where it is not RUN/study.db.")] = None,
) -> None:
    """List the points of a run: accuracy against every cost metric."""
    if as_json and as_csv:
        raise InputError("only one of --json and --csv must be given, got both")
    from slimbit.frontier.store import open_run

    frontier = open_run(run, storage=storage).frontier()
    chosen = metric or frontier.metric
    rows = [row for row in point_rows(frontier, chosen) if row["pareto"] or not pareto]
    if as_json:
        about = {"network": frontier.network, "metric": chosen, "float_accuracy": frontier.float_accuracy}
        typer.echo(json.dumps({"schema": SCHEMA, **about, "points": rows}, indent=2, allow_nan=False))
    elif as_csv:
        typer.echo(_csv(rows), nl=False)
    else:
        numbers = {row["number"] for row in rows}
        shown = [point for point in frontier.points if point.number in numbers]
        console = Console()
        console.print(points_table(frontier, shown, chosen, wide=console.width >= WIDE))
        for line in failures(shown):
            Console(stderr=True, highlight=False, soft_wrap=True).print(line)


def point_rows(frontier: Frontier, metric: str) -> list[dict[str, Any]]:
    """The points as flat data, with whether they are on the Pareto front of a metric."""
    front = _front(frontier, metric)
    return [{**point.to_dict(), "pareto": point.number in front} for point in frontier.points]


def _front(frontier: Frontier, metric: str) -> set[int]:
    from slimbit.frontier.select import pareto_front

    return {point.number for point in pareto_front(frontier.points, metric)}


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def points_table(frontier: Frontier, shown: Sequence[FrontierPoint], metric: str, *, wide: bool = True) -> Table:
    """Points for the terminal, cheapest first; those on the Pareto front are marked.

    Args:
        frontier: All points, which decide what is on the front.
        shown: Those to list.
        metric: Cost metric to order by.
        wide: Whether there is room for other metrics.
    """
    front = _front(frontier, metric)
    costs = [metric, *(name for name in BESIDE if wide and name != metric)]
    title = f"{frontier.network}: accuracy against {metric}, float {frontier.float_accuracy:.2f}"
    table = Table(title=escape(title), caption="* no other point is both cheaper and more accurate")
    for name in ("", "accuracy", "95 %", *costs):
        table.add_column(escape(name), justify="right", no_wrap=True)
    table.add_column("point", no_wrap=True)
    for point in sorted((p for p in shown if p.state == "done"), key=lambda p: (_cost(p, metric), p.number)):
        table.add_row(*_cells(point, costs, best=point.number in front), style="dim" if point.baseline else "")
    return table


def _cells(point: FrontierPoint, costs: Sequence[str], *, best: bool) -> list[str]:
    from slimbit.report.tables import quantity

    accuracy = "" if point.accuracy is None else f"{point.accuracy:.2f}"
    what = escape(f"{point.policy}, {point.setting}")
    return ["*" if best else "", accuracy, between(point), *(quantity(point.costs.get(name)) for name in costs), what]


def between(point: FrontierPoint) -> str:
    """The confidence interval of a point's accuracy, "" where it is not known."""
    known = point.accuracy_low is not None and point.accuracy_high is not None
    return f"{point.accuracy_low:.1f}-{point.accuracy_high:.1f}" if known else ""


def failures(shown: Sequence[FrontierPoint]) -> list[str]:
    """One line per failed point, with the reason."""
    failed = [point for point in shown if point.state == "failed"]
    return [escape(f"point {p.number} ({p.policy}, {p.setting}) failed: {p.error}") for p in failed]


def _cost(point: FrontierPoint, metric: str) -> float:
    value = point.costs.get(metric)
    return float("inf") if value is None else value
