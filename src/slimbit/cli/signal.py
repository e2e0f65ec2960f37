"""`slimbit signal`: signal and noise of a training run, epoch by epoch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from slimbit.records.codec import pretty
from slimbit.records.terminal import Fitted, shown
from slimbit.records.text import printable
from slimbit.report.signal_frames import TrainingData

LEFT_OUT = ("corrected", "loss", "learning rate", "closed form", "ESN_a")
"""Columns that a narrower terminal does without, the first to go first."""


def signal(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a training run, or a signal.jsonl.", show_default=False)
    ],
    *,
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="Show one layer only.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Page to write; default: RUN/signal.html, of a file X.jsonl X.html.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and write no page.")] = False,
) -> None:
    """Show how the weights walk in training: S/N, the ESN_a it stands for, dead filters; and write a page."""
    from slimbit.records.training_run import read_training_run
    from slimbit.report.signal_frames import json_data, only_layer, training_data
    from slimbit.report.signal_page import write_signal_page

    found = read_training_run(run)
    chosen = found if layer is None else only_layer(found, layer)
    if as_json:
        typer.echo(pretty({"layer": layer, **json_data(chosen)}))
        return
    console = Console(highlight=False)
    data = training_data(chosen)
    console.print(signal_table(data, layer))
    console.print()
    for note in data.notes:
        console.print(printable(note), style="dim", markup=False)
    file = write_signal_page(chosen, out or (None if run.is_dir() else run.with_suffix(".html")))
    console.print(f"page written: {file}", markup=False, soft_wrap=True)


def signal_table(data: TrainingData, layer: str | None = None) -> Fitted:
    """The epochs for the terminal; narrow ones do without some columns."""
    from slimbit.report.signal_page import TABLE, table_rows

    columns = [*(name for name, _ in TABLE), "dead"]
    rows = table_rows(data)
    what = data.network or "training run"
    title = f"{what}{'' if layer is None else f', layer {layer}'}: signal to noise while it trained"

    def tables(_: int) -> Iterator[Table]:
        for count in range(len(LEFT_OUT) + 1):
            places = [place for place, name in enumerate(columns) if name not in LEFT_OUT[:count]]
            table = Table(title=shown(title), caption=_caption(data), box=None, pad_edge=False, header_style="bold")
            for place in places:
                table.add_column(columns[place], justify="right", no_wrap=True)
            for row in rows:
                table.add_row(*(row[place].rjust(len(columns[place])) for place in places))
            yield table

    return Fitted(tables)


def _caption(data: TrainingData) -> str:
    filters = data.epochs[-1].filters
    return f"dead: of {filters} filters, those with a norm below 5 % of their layer's 90th percentile"
