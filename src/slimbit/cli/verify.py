"""`slimbit verify`: the proof that an exported file computes what was promised."""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimbit.cli.options import AllowCode, VerifyData, VerifyImages, load_folder
from slimbit.records.codec import plain, pretty, with_schema

if TYPE_CHECKING:
    from slimbit.compress.model import CompressedModel
    from slimbit.records.verification import Verification

SCHEMA = 1


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An exported ONNX file.", show_default=False)],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that it was exported from.", show_default=False)
    ],
    *,
    data: VerifyData = None,
    images: VerifyImages = 200,
    precise: Annotated[
        bool, typer.Option("--precise", help="Give ONNX Runtime session.x64quantprecision, see the docs.")
    ] = False,
    allow_code: AllowCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a file in ONNX Runtime, in an integer reference and as the network of DIR: every bit must agree.

    Exit code 1 where it does not.
    """
    from slimbit.compress.verify import verify as verify_file

    small = load_folder(folder, allow_code=allow_code)
    given = images_of(small, data=data, images=images)
    found = verify_file(file, small, given.batches, labels=given.labels, precise=precise)
    if as_json:
        typer.echo(pretty(with_schema(plain_proof(found), SCHEMA)))
    else:
        print_verification(found)
        print_fits(small, names=("onnxruntime", "openvino"))
    if not found.is_exact:
        raise typer.Exit(1)


def plain_proof(found: "Verification") -> dict[str, Any]:
    """A verification as data for ``--json``, with its verdict."""
    return {**plain(found), "is_exact": found.is_exact, "needs_precision": list(found.needs_precision)}


@dataclass(frozen=True)
class ImagesToVerify:
    """Batches of images, and the class of each where it is known."""

    batches: Any
    labels: Any = None


def images_of(small: "CompressedModel", *, data: str | None, images: int) -> ImagesToVerify:
    """Images of a data spec as the network takes them, or random ones.

    Raises:
        InputError: No such data, or images of another shape.
    """
    import torch

    from slimbit.zoo.data import open_data

    shape = tuple(small.origin.input_shape)
    if data is None:
        return ImagesToVerify([torch.randn(images, *shape, generator=torch.Generator().manual_seed(0))])
    norm = small.origin.normalization
    card = None if norm is None else {"normalize": {"mean": list(norm.mean), "std": list(norm.std)}}
    opened = open_data(data, card=card)
    evaluator = opened.evaluator(min(images, len(opened.test.images)))
    return ImagesToVerify(evaluator.batches(), evaluator.labels)


def print_verification(found: "Verification") -> None:
    """The verdict first, then what a user has to know."""
    typer.echo(found.verdict)
    if not found.is_exact and found.runtime:
        worst = max(found.layer_differences.items(), key=lambda pair: pair[1], default=("", 0))
        typer.echo(
            f"largest difference: {found.largest_output_difference:g} of an output, {worst[1]} codes at {worst[0]}; "
            f"{found.answers_that_differ} answers differ"
        )
    if found.accuracy is None and found.reference_accuracy is not None:
        typer.echo(f"accuracy in the reference {found.reference_accuracy:.2f} on these {found.images:,} images")
    if found.accuracy is not None:
        typer.echo(
            f"accuracy in the runtime {found.accuracy:.2f}, in the reference {found.reference_accuracy:.2f} on these "
            f"{found.images:,} images"
        )
    kinds = {kind: sum(node.fusion == kind for node in found.nodes) for kind in ("integer", "float", "gone")}
    names = ", ".join(f"{node.name} ({node.executed})" for node in found.float_nodes[:5])
    if found.nodes:
        typer.echo(
            f"operations: {kinds['integer']} in integers, {kinds['float']} in floats between integers"
            + (f": {names}{', ...' if kinds['float'] > 5 else ''}" if names else "")
        )
    if found.needs_precision:
        layers = ", ".join(found.needs_precision[:5])
        emulated = (
            ""
            if found.answers_that_saturate is None
            else f"; emulated, {found.answers_that_saturate} of {found.saturating_images} answers change"
        )
        typer.echo(
            f"on processors without VNNI, sums can saturate in {len(found.needs_precision)} layers ({layers}): set "
            f"session.x64quantprecision there{emulated} (this processor's VNNI: {found.processor})"
        )


def print_fits(small: "CompressedModel", *, names: Container[str]) -> None:
    """One line for each of these runtimes that pads widths or channels, or cannot execute some of them in integers."""
    from slimbit.compress.fits import fits_of

    for fit in fits_of(small):
        if fit.runtime.name not in names:
            continue
        if not fit.executes:
            typer.echo(f"{fit.runtime.title}: too wide for its integers: {', '.join(fit.too_wide[:5])}")
        elif fit.padding > 1:
            widest = "x".join(str(max(x)) for x in (fit.runtime.weight_bits, fit.runtime.activation_bits))
            typer.echo(
                f"{fit.runtime.title}: executes {fit.padding:.1f} times the bit-operations of the network: up to "
                f"{widest} bits, channels in multiples of {fit.runtime.channels}"
            )
