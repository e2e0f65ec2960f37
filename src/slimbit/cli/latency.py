"""`slimbit latency`: how long an exported file takes in a runtime on this machine."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from slimbit.cli.options import AllowCode
from slimbit.records.codec import plain, pretty, with_schema
from slimbit.records.errors import InputError
from slimbit.records.files import has_file, write_whole
from slimbit.records.run import RUN_FILE
from slimbit.records.terminal import shown

if TYPE_CHECKING:
    from slimbit.records.latency import Latency

SCHEMA = 1


def latency(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="ONNX files with the same inputs; with --table also runs, of which every size is exported.",
            show_default=False,
        ),
    ],
    *,
    batch: Annotated[list[int] | None, typer.Option(help="Images per pass; repeatable; default 1.")] = None,
    threads: Annotated[
        list[int] | None, typer.Option(help="Threads; repeatable; default: 1, and as many as there are.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="onnxruntime or openvino.")] = "onnxruntime",
    seconds: Annotated[float, typer.Option(help="Time to spend on each setting.")] = 2.0,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Write the time of each layer in ONNX Runtime, a machine for --hardware and --budget, instead of "
            "comparing the files; one --batch and one --threads, default 1.",
        ),
    ] = None,
    allow_code: AllowCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure files in a runtime, taking turns in one run: medians, and ratios to the last file."""
    if table is not None:
        _write_table(
            files, table, batches=batch, threads=threads, runtime=runtime, seconds=seconds, allow_code=allow_code,
            as_json=as_json,
        )  # fmt: skip
        return
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
    compares = len({one.file for one in found}) > 1
    table = Table(title=f"median of a pass in {found[0].runtime}")
    table.add_column("file")
    for column in ("batch", "threads", "median", "quartiles", f"times {baseline}" if compares else "images / s"):
        table.add_column(shown(column), justify="right")
    for one in found:
        last = f"{ratios[one]:.2f}" if compares else f"{1 / one.seconds_per_image:.0f}"
        table.add_row(
            shown(one.file), str(one.batch), str(one.threads), f"{1e3 * one.median_seconds:.3g} ms",
            f"{1e3 * one.low_seconds:.3g}-{1e3 * one.high_seconds:.3g}", last,
        )  # fmt: skip
    return table


def _write_table(
    given: list[Path],
    out: Path,
    *,
    batches: list[int] | None,
    threads: list[int] | None,
    runtime: str,
    seconds: float,
    allow_code: bool,
    as_json: bool,
) -> None:
    """Profile the files, write the table and print how far each profile is off."""
    if runtime != "onnxruntime":
        raise InputError(f"runtime must be onnxruntime for --table, whose profiler times layers, got {runtime}")
    for name, values in (("--batch", batches), ("--threads", threads)):
        if values is not None and len(values) > 1:
            raise InputError(f"{name} must be given once with --table, got {len(values)}")
    if out.suffix.lower() != ".toml":
        raise InputError(f"--table must name a .toml file, got {out}")
    from slimbit.exchange.layer_times import measure_layer_times

    with tempfile.TemporaryDirectory() as folder:
        files: list[Path] = []
        for place, path in enumerate(given):
            if has_file(path, RUN_FILE):
                from slimbit.frontier.frontier import open_run
                from slimbit.frontier.sizes import export_each_size
                from slimbit.sources.networks import check_trusted_network

                run = open_run(path)
                source = run.info.origin.source
                check_trusted_network(source, str(path / RUN_FILE), allow_code=allow_code, otherwise="")
                place_of_run = Path(folder) / str(place)
                place_of_run.mkdir()
                files += export_each_size(run, place_of_run, allow_code=allow_code)
            else:
                files.append(path)
        found = measure_layer_times(
            files, name=out.stem, batch=(batches or [1])[0], threads=(threads or [1])[0], seconds=seconds
        )
    write_whole(out, found.to_toml().encode())
    if as_json:
        typer.echo(pretty(with_schema(found, SCHEMA)))
        return
    rows = Table(title=shown(found.source))
    for column in ("file", "arithmetic", "median pass", "sum of the profile", "ratio"):
        rows.add_column(column, justify="left" if column in ("file", "arithmetic") else "right")
    for one in found.file:
        rows.add_row(
            shown(one.name), one.arithmetic, f"{one.whole_ms:.3g} ms", f"{one.profiled_ms:.3g} ms",
            f"{one.profiled_over_whole:.2f}",
        )  # fmt: skip
    Console().print(rows)
    typer.echo(
        f"wrote {shown(str(out))}: times of {len({row.name for row in found.layer})} layers, divided by the ratio"
    )
    typer.echo(f"in milliseconds: slimbit points RUN --hardware {shown(str(out))}, --budget {shown(str(out))}=AMOUNT")
