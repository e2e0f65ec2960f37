"""`slimbit demo`: the whole journey on a network that comes with Slimbit."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slimbit.cli.frontier import trace
from slimbit.cli.points import points_table
from slimbit.records.config import FrontierConfig

NETWORK, DATA, POINTS = "digits_resnet", "digits", 12


def demo(
    *, out: Annotated[Path, typer.Option(help="Folder of the run, new or to be continued.")] = Path("runs/demo")
) -> None:
    """Trace the frontier of a small digits network, show it, and write the report. No download."""
    from slimbit.measure.cost import cost
    from slimbit.numerics.batches import zeros_like_input
    from slimbit.sources.networks import model_of

    console = Console()
    model, shape = model_of(NETWORK)
    console.print(cost(model, zeros_like_input(shape), bits=4), "")
    settings = FrontierConfig().with_options({"network": NETWORK, "data": DATA, "points": POINTS})
    result = trace(settings, out)
    console.print(points_table(result, result.points, result.metric))
    page = result.report()
    console.print(f"\nThe report is a file to open in a browser: [bold]{page}[/]")
    console.print(f"Take a model: [bold]slimbit pick {out} --budget esn_digital=80k --out digits-slim[/]")
