"""`slimbit latency`: how long an exported file takes in a runtime on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from slimbit.records.codec import plain, pretty, with_schema
from slimbit.records.terminal import shown

if TYPE_CHECKING:
    from slimbit.records.latency import Latency

SCHEMA = 1


def latency(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="ONNX files with the same inputs.", show_default=False)
    ],
    *,
    batch: Annotated[list[int] | None, typer.Option(help="Images per pass; repeatable; default 1.")] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads; repeatable; default: 1, and as many as there are.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="onnxruntime or openvino.")] = "onnxruntime",
    seconds: Annotated[float, typer.Option(help="Time to spend on each setting.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure files in a runtime, taking turns in one run: medians, and ratios to the last file."""
    from slimbit.exchange.latency import measure_latency

    found = measure_latency(
        files,
        batches=tuple(batch or (1,)),
        threads=tuple(threads) if threads else None,
        runtime=runtime,  # type: ignore[arg-type]  # checked there
        seconds=seconds,
    )
    if as_json:
        rows = [{**plain(one), "seconds_per_image": one.seconds_per_image} for one in found]
        typer.echo(pretty(with_schema({"latencies": rows}, SCHEMA)))
        return
    Console().print(latency_table(found, files[-1].name))


def latency_table(found: "tuple[Latency, ...]", baseline: str) -> Table:
    """Median of each file and its ratio to the baseline file."""
    from slimbit.records.latency import speed_ratios

    ratios = speed_ratios(found, baseline)
    table = Table(title=f"median of a pass in {found[0].runtime}")
    table.add_column("file")
    for column in ("batch", "threads", "median", "quartiles", f"times {baseline}" if len(ratios) > 1 else "images / s"):
        table.add_column(shown(column), justify="right")
    for one in found:
        last = f"{ratios[one]:.2f}" if len(ratios) > 1 else f"{1 / one.seconds_per_image:.0f}"
        table.add_row(
            shown(one.file), str(one.batch), str(one.threads), f"{1e3 * one.median_seconds:.3g} ms",
            f"{1e3 * one.low_seconds:.3g}-{1e3 * one.high_seconds:.3g}", last,
        )  # fmt: skip
    return table
