"""`slimbit report`: a run as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slimbit.records.errors import InputError

PORT = 8765


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)],
    *,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="RUN/report.html, RUN/versus.html")
    ] = None,
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
    versus: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Show this run beside the other instead.", show_default=False),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve it on this machine instead, fresh while the run goes on.")
    ] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Of --watch; 0: any.", show_default="8765")] = None,
) -> None:
    """Write a run's report: one HTML file with figures, tables and assumptions that needs no network."""
    from slimbit.frontier.frontier import open_run

    if watch and out is not None:
        raise InputError(f"--out must not be given with --watch, which writes no file, got {out}")
    if port is not None and not watch:
        raise InputError(f"--port must be given with --watch, got {port} alone")
    if versus is not None and watch:
        raise InputError(f"--versus must not be given with --watch, which shows one run, got {versus}")
    frontier = open_run(run, storage=storage).with_hardware(*(hardware or ()))
    console = Console(highlight=False, soft_wrap=True)
    if not watch:
        other = None if versus is None else open_run(versus, storage=storage).with_hardware(*(hardware or ()))
        console.print(f"report written: {frontier.report(out, versus=other)}", markup=False)
        return
    from slimbit.report.server import watch as serve

    serve(
        lambda: frontier.refresh().report_source(),
        PORT if port is None else port,
        lambda address: console.print(f"report of {run}: {address} (Ctrl-C ends)", markup=False),
    )
    console.print("ended", markup=False)
