"""`slimbit demo`: the whole journey on a network that comes with Slimbit."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from slimbit.cli.frontier import trace
from slimbit.cli.latency import latency_table
from slimbit.cli.pick import pick
from slimbit.cli.points import points_table
from slimbit.records.config import FrontierConfig

if TYPE_CHECKING:
    from slimbit.frontier.frontier import Frontier

NETWORK, DATA, POINTS = "digits_resnet", "digits", 12
MAX_DROP = 1.0
BATCHES = (1, 64)


def demo(
    *, out: Annotated[Path, typer.Option(help="Folder of the run, new or to be continued.")] = Path("runs/demo")
) -> None:
    """Trace the frontier of a small digits network, write a verified ONNX file, time it, and write the report."""
    from slimbit.measure.cost import cost
    from slimbit.numerics.batches import zeros_like_input
    from slimbit.sources.networks import model_of

    console = Console()
    model, shape = model_of(NETWORK)
    console.print(cost(model, zeros_like_input(shape), bits=4), "")
    settings = FrontierConfig().with_options(
        {"network": NETWORK, "data": DATA, "points": POINTS, "quant": {"activation_bits": 8}}
    )
    result = trace(settings, out)
    console.print(points_table(result, result.points, result.metric))
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        console.print("\nNo file was written: that needs onnx and onnxruntime, the extra onnx.")
    else:
        _export(result, console)
    page = result.report()
    console.print(f"\nThe report is a file to open in a browser: [bold]{page}[/]")
    command = f"slimbit pick {out} --budget esn_digital=80k --out digits-slim"
    console.print(f"Take another model: [bold]{command}[/]", soft_wrap=True)


def _export(run: "Frontier", console: Console) -> None:
    """Pick the cheapest point near the float network, write and verify its file, and time it beside the float one."""
    from slimbit.compress.load import load
    from slimbit.exchange.latency import measure_latency

    folder, file, whole = (run.path / name for name in ("small", "small.onnx", "float.onnx"))
    console.print(f"\nThe cheapest point at most {MAX_DROP:g} point of accuracy below the float network:")
    pick(run.path, out=folder, max_drop=MAX_DROP, export=file)
    load(folder).export(whole, as_float=True)
    times = measure_latency([file, whole], batches=BATCHES, threads=(1,), seconds=0.5)
    console.print("", latency_table(times, whole.name))
    number = run.cheapest(max_drop=MAX_DROP).number
    proof = next(one for one in run.exported() if one.point == number)
    run.add_exported(replace(proof, latencies=times))
