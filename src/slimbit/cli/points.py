"""`slimbit points`: what a run has measured."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from slimbit.cli.options import check_machines
from slimbit.records.codec import pretty
from slimbit.records.cost import METRICS
from slimbit.records.errors import InputError
from slimbit.records.point import FrontierPoint
from slimbit.records.terminal import Fitted, quantity, score_text, shown

if TYPE_CHECKING:
    from slimbit.frontier.frontier import Frontier

SCHEMA = 1
COLUMNS = ("number", "key", "state", "width", "policy", "setting", "baseline", "pareto", "accuracy", "accuracy_low",
           "accuracy_high", *METRICS, "metric", "price", "plan", "error", "clamped")  # fmt: skip
WIDE = 100
BESIDE = ("esn_analog", "esn_digital", "mean_bits")


def points(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    pareto: Annotated[bool, typer.Option("--pareto", help="Only points that no other point dominates.")] = False,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="COST",
            help="Cost of the Pareto front: a metric, hardware:NAME, a .toml file or package.module:function; default: "
            "the run's.",
        ),
    ] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Show the cost on this machine, too, as in slimbit cost: a name, a .toml file or "
            "package.module:function; repeatable. The run need not know it.",
        ),
    ] = None,
    workers: Annotated[bool, typer.Option("--workers", help="List who works on what instead.")] = False,
    storage: Annotated[str | None, typer.Option(help="Address of the study, where it is not RUN/study.db.")] = None,
) -> None:
    """List the points of a run: accuracy against every cost; or its workers."""
    if as_json + as_csv + workers > 1:
        raise InputError("only one of --json, --csv and --workers must be given, got several")
    if workers:
        Console().print(workers_table(run, storage))
        return
    from slimbit.frontier.frontier import open_run

    frontier = open_run(run, storage=storage).with_hardware(*(hardware or ()))
    check_machines([metric], frontier.costs, "--metric")
    frontier, (chosen,) = frontier.with_costs([metric or frontier.metric])
    rows = [row for row in point_rows(frontier, chosen) if row["pareto"] or not pareto]
    if as_json:
        about = {"network": frontier.network, "metric": chosen, "float_accuracy": frontier.float_accuracy}
        typer.echo(pretty({"schema": SCHEMA, **about, "points": rows}))
    elif as_csv:
        typer.echo(_csv(rows, _machines(frontier)), nl=False)
    else:
        if not frontier.points:
            typer.echo(f"{run} has no finished point yet: the command that made it continues it")
            return
        numbers = {row["number"] for row in rows}
        listed = [point for point in frontier.points if point.number in numbers]
        Console().print(points_table(frontier, listed, chosen), *clampings(listed))
        for line in failures(listed):
            Console(stderr=True, highlight=False, soft_wrap=True).print(line)


def workers_table(run: Path, storage: str | None) -> Table | str:
    """Workers of a run and what each has claimed."""
    from slimbit.frontier.store import open_store

    store = open_store(run, storage=storage)
    holders = store.holders()
    if not holders:
        return "nobody works on this run"
    table = Table(
        title=shown(f"workers of {run}"),
        caption=f"a worker that is gone loses its claim {store.table.takeover}; times by each machine's own clock",
    )
    for name in ("worker", "works on", "since", "slimbit"):
        table.add_column(name, overflow="fold")
    for holder in holders:
        table.add_row(*map(shown, (holder.worker, holder.what, holder.since, holder.slimbit)))
    return table


def point_rows(frontier: "Frontier", metric: str) -> list[dict[str, Any]]:
    """The points as flat data, with whether they are on the Pareto front of a metric."""
    front = _front(frontier, metric)
    return [{**point.to_dict(), "pareto": point.number in front} for point in frontier.points]


def _front(frontier: "Frontier", metric: str) -> set[int]:
    return {point.number for point in frontier.pareto(metric)}


def _machines(frontier: "Frontier") -> list[str]:
    return [name for name in frontier.costs if name not in METRICS]


def _csv(rows: Sequence[dict[str, Any]], machines: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, (*COLUMNS, *machines), extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "clamped": " ".join(row["clamped"])} for row in rows)
    return text.getvalue()


def points_table(frontier: "Frontier", listed: Sequence[FrontierPoint], metric: str) -> Fitted:
    """Points for the terminal, cheapest first; those on the Pareto front are marked.

    Args:
        frontier: All points, which decide what is on the front.
        listed: Those to list.
        metric: Cost metric to order by; where there is room, others stand beside it.
    """
    front = _front(frontier, metric)
    rows = sorted((p for p in listed if p.state == "done"), key=lambda p: (_cost(p, metric), p.number))
    scored = partial(score_text, scale=frontier.float_accuracy)
    title = f"{frontier.network}: {frontier.info.score_name} against {metric}, float {scored(frontier.float_accuracy)}"

    def table(costs: Sequence[str], *, narrow: bool = False) -> Table:
        table = Table(
            title=shown(title),
            caption="* no other point is both cheaper and more accurate",
            box=None if narrow else box.HEAVY_HEAD,
            pad_edge=not narrow,
        )
        cells: dict[str, Callable[[FrontierPoint], str]] = {"": lambda p: "*" if p.number in front else ""}
        cells |= {shown(frontier.info.score_name): lambda p: "" if p.accuracy is None else scored(p.accuracy)}
        cells |= {} if narrow else {"95 %": between}
        cells |= {name: partial(_shown_cost, name) for name in costs}
        for name in cells:
            table.add_column(shown(name), justify="right", no_wrap=True)
        table.add_column("point", overflow="fold")
        for p in rows:
            table.add_row(*(cell(p) for cell in cells.values()), shown(p.label), style="dim" if p.baseline else "")
        return table

    def tables(width: int) -> Iterator[Table]:
        if width >= WIDE:
            yield table([metric, *(name for name in (*_machines(frontier), *BESIDE) if name != metric)])
        yield table([metric, *(name for name in _machines(frontier) if name != metric)])
        yield table([metric])
        yield table([metric], narrow=True)

    return Fitted(tables, names=-1)


def _shown_cost(metric: str, point: FrontierPoint) -> str:
    return quantity(point.costs.get(metric))


def between(point: FrontierPoint) -> str:
    """The confidence interval of a point's accuracy, "" where it is not known."""
    known = point.accuracy_low is not None and point.accuracy_high is not None
    return f"{point.accuracy_low:.1f}-{point.accuracy_high:.1f}" if known else ""


def failures(listed: Sequence[FrontierPoint]) -> list[str]:
    """One line per failed point, with the reason."""
    failed = [point for point in listed if point.state == "failed"]
    return [shown(f"point {p.number} ({p.label}) failed: {p.error}") for p in failed]


def clampings(listed: Sequence[FrontierPoint]) -> list[str]:
    """One line per point with layers that could not get the step which the policy asked for."""
    return [
        shown(f"{p.label}: no step reaches the target of {', '.join(p.clamped)}; the nearest was taken")
        for p in listed
        if p.clamped
    ]


def _cost(point: FrontierPoint, metric: str) -> float:
    value = point.costs.get(metric)
    return float("inf") if value is None else value
