"""Prove that an exported file computes what a compressed network does."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from slimbit.compress.model import CompressedModel
from slimbit.records.errors import InputError, MissingExtraError
from slimbit.records.verification import Verification


def verify(
    file: str | Path,
    model: CompressedModel | nn.Module | None = None,
    images: Iterable[Any] | Tensor | None = None,
    *,
    labels: Any = None,
    precise: bool = False,
    threads: int = 1,
    in_runtime: bool = True,
) -> Verification:
    """Run an exported ONNX file in ONNX Runtime, in an integer reference, and as the network it was made of.

    The reference is written from the semantics of the ONNX operators, slow and plain. All three must agree on every
    bit of every output.

    Args:
        file: Written by `slimbit.CompressedModel.export` with quantized activations.
        model: What it was exported from; None leaves that comparison out.
        images: Images as the network takes them: a tensor, or batches.
        labels: Class of each image, for accuracies.
        precise: Whether ONNX Runtime gets ``session.x64quantprecision``: on processors without VNNI, integers beyond 64
            give wrong sums without it.
        threads: Of ONNX Runtime.
        in_runtime: Whether the file runs in ONNX Runtime; else the reference and the network are compared alone, for
            files of runtimes that are not at hand.

    Returns:
        What was found; ``is_exact`` is the verdict.

    Raises:
        MissingExtraError: onnx or onnxruntime is not installed.
        InputError: No images, a ``model`` that is none, a file that the runtime cannot load, or operators that the
            reference does not know.

    >>> import slimbit, tempfile, torch
    >>> images, file = torch.randn(32, 1, 8, 8), tempfile.mkdtemp() + "/digits.onnx"
    >>> small = slimbit.quantize(
    ...     slimbit.network("digits_resnet"), images[:1], images, bits=6, config=slimbit.QuantConfig(activation_bits=8)
    ... )
    >>> slimbit.verify(small.export(file), small, images[:4]).is_exact
    True
    """
    try:
        from slimbit.exchange.verify import verify_onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError("onnx", "onnx", "verifying an ONNX file") from error
    if images is None:
        raise InputError("images must be given to verify a file, got none")
    network = model.model if isinstance(model, CompressedModel) else model
    if not isinstance(network, nn.Module | None):
        raise InputError(
            f"model must be what was exported, a CompressedModel or a Module, got {type(network).__name__}: open a "
            "folder with slimbit.load"
        )
    batches = [images] if isinstance(images, Tensor) else images
    return verify_onnx(
        file, batches, labels=labels, network=network, precise=precise, threads=threads, in_runtime=in_runtime
    )
