"""`slimbit report`: a run as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    *,
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="RUN/report.html")] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Show the cost on this machine, too: a name, a .toml file or package.module:function; repeatable.",
            show_default=False,
        ),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Address of the study, where it is not RUN/study.db.", show_default=False)
    ] = None,
) -> None:
    """Write a run's report: one HTML file with figures, tables and assumptions that needs no network."""
    from slimbit.frontier.frontier import open_run

    file = open_run(run, storage=storage).with_hardware(*(hardware or ())).report(out)
    Console(highlight=False, soft_wrap=True).print(f"report written: {file}", markup=False)
