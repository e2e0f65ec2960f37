"""`slimbit export`: a picked model as a file that a runtime executes."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimbit.cli.options import AllowCode, VerifyData, VerifyImages, load_folder
from slimbit.cli.verify import ImagesToVerify, images_of, print_fits, print_verification
from slimbit.records.errors import InputError, check_choice
from slimbit.records.files import write_whole

if TYPE_CHECKING:
    from slimbit.compress.model import CompressedModel
    from slimbit.records.verification import ExportedFile, Verification

TARGETS = {"onnx": ("onnxruntime", "openvino", "tensorrt"), "qonnx": ("finn", "hls4ml")}
"""Runtimes and flows that files are written for, by format; the first is the default."""

VERIFIED_IN_RUNTIME = ("onnxruntime", "openvino")
"""Targets whose files ONNX Runtime executes in integers; others are compared with the integer reference alone."""


def export(  # noqa: PLR0913 - one argument per option of the command
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of slimbit pick or prune.", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(help="File to write.", show_default=False)],
    format_: Annotated[str, typer.Option("--format", help="onnx for runtimes, qonnx for FPGA flows.")] = "onnx",
    target: Annotated[
        str | None,
        typer.Option(
            help="What executes it: onnxruntime, openvino or tensorrt of onnx, finn or hls4ml of qonnx; default: the "
            "first.",
            show_default=False,
        ),
    ] = None,
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
    data: VerifyData = None,
    images: VerifyImages = 200,
    allow_code: AllowCode = False,
) -> None:
    """Write a picked or pruned network as an ONNX or QONNX file, and prove that it computes what was promised.

    Exit code 1 where it does not.
    """
    from slimbit.records.runtimes import runtime_named

    runtime = runtime_named(_checked_target(target, format_, int4=int4))
    small = load_folder(folder, allow_code=allow_code)
    is_verified = verify and format_ == "onnx" and not as_float
    images_to_verify = images_of(small, data=data, images=images) if is_verified else None
    content, proof = exported(
        small, out.name, images_to_verify, form=format_, target=runtime.name, as_float=as_float, int4=int4, opset=opset
    )
    write_whole(out, content)
    typer.echo(f"wrote {out}: {len(content):,} bytes")
    if proof is None:
        typer.echo("not verified: only quantized ONNX files are" if verify else "not verified")
    else:
        print_verification(proof)
    if not as_float:
        # only files for TensorRT have signed codes, and those have nothing else
        others = [name for name in TARGETS[format_] if runtime_named(name).unsigned == runtime.unsigned]
        print_fits(small, names=[name for name in others if not int4 or runtime_named(name).stores_int4])
    if runtime.name == "openvino" and not as_float:
        typer.echo(f"{runtime.title}: {runtime.notes[0]}")
    if runtime.name == "tensorrt" and not as_float:
        typer.echo(f"{runtime.title}: the file keeps to its published rules; it was not run there. {runtime.notes[-1]}")
    if proof is not None and not proof.is_exact:
        raise typer.Exit(1)


def _checked_target(target: str | None, form: str, *, int4: bool) -> str:
    """Name of the runtime that a file of this format is written for.

    Raises:
        InputError: There is no such format or runtime, or they do not go together.
    """
    from slimbit.records.runtimes import runtime_named

    check_choice("--format", form, tuple(TARGETS))
    name = target or TARGETS[form][0]
    runtime = runtime_named(name)
    if name not in TARGETS[form]:
        raise InputError(f"--target {name} must be given with --format {runtime.format}, got --format {form}")
    if int4 and not runtime.stores_int4:
        raise InputError(f"--int4 must be given for a runtime that stores weights in four bits, got --target {name}")
    return name


def exported(
    model: "CompressedModel",
    name: str,
    images: ImagesToVerify | None,
    *,
    form: str = "onnx",
    target: str | None = None,
    as_float: bool = False,
    int4: bool = False,
    opset: int | None = None,
) -> "tuple[bytes, Verification | None]":
    """Bytes of the file, and what verifying it found; nothing is left on the disk.

    Raises:
        InputError: There can be no such file, in one sentence.
    """
    from slimbit.compress.verify import verify as verify_file

    if model.program is None and not as_float:
        raise InputError(
            "DIR must hold a network with quantized activations, got float ones: trace with --activation-bits 8, or "
            "write floats with --float"
        )
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / (name or "network.onnx")
        model.export(file, format=form, target=target, as_float=as_float, int4=int4, opset=opset)  # type: ignore[arg-type]  # checked
        if images is None:
            return file.read_bytes(), None
        proof = verify_file(
            file, model, images.batches, labels=images.labels, in_runtime=target in (None, *VERIFIED_IN_RUNTIME)
        )
        return file.read_bytes(), proof


def exported_file(point: int, small: "CompressedModel", proof: "Verification", *, size: int) -> "ExportedFile":
    """What a run keeps of a file that was written of a point.

    Args:
        point: Its number.
        small: Its model.
        proof: What verifying the file found.
        size: Of the file, bytes.
    """
    from slimbit.compress.fits import fits_of
    from slimbit.records.verification import ExportedFile, PaddedCost

    padded = tuple(
        PaddedCost(runtime=fit.runtime.title, padding=fit.padding, too_wide=fit.too_wide)
        for fit in fits_of(small)
        if fit.runtime.name in TARGETS["onnx"]
    )
    return ExportedFile(point=point, bytes=size, verification=proof, padded=padded)
