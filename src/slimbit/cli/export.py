"""`slimbit export`: a picked model as a file that a runtime executes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimbit.cli.verify import print_verification, verified
from slimbit.records.errors import InputError, check_choice

if TYPE_CHECKING:
    from slimbit.compress.model import CompressedModel

TARGETS = ("onnxruntime",)
"""Runtimes that exported files are verified in."""


def export(  # noqa: PLR0913 - one argument per option of the command
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of slimbit pick or prune.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="onnx for runtimes, qonnx for FPGA flows.")] = "onnx",
    target: Annotated[str, typer.Option(help="Runtime that executes it: onnxruntime.")] = "onnxruntime",
    as_float: Annotated[
        bool, typer.Option("--float", help="Write floats: a network that is only pruned, or to compare with.")
    ] = False,
    int4: Annotated[
        bool, typer.Option("--int4", help="Store weights that fit in four bits: a smaller file, not a faster one.")
    ] = False,
    opset: Annotated[int | None, typer.Option(help="Version of the ONNX operators; default: 17, or 21.")] = None,
    verify: Annotated[
        bool, typer.Option(help="Prove that runtime, integer reference and network agree on every bit.")
    ] = True,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Data to verify on; default: random images, no accuracy.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images to verify on.")] = 200,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run the code that the folder names to build its network.")
    ] = False,
) -> None:
    """Write a picked or pruned network as an ONNX or QONNX file, and prove that it computes what was promised."""
    from slimbit.compress.load import load

    check_choice("--target", target, TARGETS)
    write(load(folder, allow_code=allow_code), out, form=format_, as_float=as_float, int4=int4, opset=opset)
    typer.echo(f"wrote {out}: {out.stat().st_size:,} bytes")
    if as_float or format_ != "onnx":
        typer.echo("not verified: only quantized ONNX files are" if verify else "not verified")
        return
    if verify:
        found = verified(out, folder, data=data, images=images, precise=False, allow_code=allow_code)
        print_verification(found)


def write(model: "CompressedModel", out: Path, *, form: str, as_float: bool, int4: bool, opset: int | None) -> None:
    """Write the file, with the reason in one sentence where there can be none."""
    check_choice("--format", form, ("onnx", "qonnx"))
    if model.program is None and not as_float:
        raise InputError(
            "DIR must hold a network with quantized activations, got float ones: trace with --activation-bits 8, or "
            "write floats with --float"
        )
    model.export(out, format=form, as_float=as_float, int4=int4, opset=opset)  # type: ignore[arg-type]  # checked above
