"""A network as an ONNX or QONNX file, with where it comes from."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from slimbit.records.codec import canonical
from slimbit.records.errors import InputError, MissingExtraError, check_choice
from slimbit.records.files import write_whole
from slimbit.records.runtimes import runtime_named

if TYPE_CHECKING:
    from slimbit.apply.integers import IntegerProgram
    from slimbit.records.dataflow import Dataflow

Format = Literal["onnx", "qonnx"]
"""Quantized operations (QDQ) for runtimes, or ``Quant`` nodes of any width for FPGA flows."""


def write_integers(
    file: str | Path,
    program: "IntegerProgram",
    *,
    form: Format = "onnx",
    target: str | None = None,
    int4: bool = False,
    opset: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the integers of a compressed network; the file is whole or not there.

    Args:
        file: To write; an older file of that name is replaced.
        program: The integers.
        form: "onnx" or "qonnx".
        target: Runtime of the table of what runs where, which the file keeps to; None: the first of its format.
        int4: Whether weights that fit are stored in four bits: a smaller file, not a faster one.
        opset: Version of the ONNX operators; default: the oldest that has what is needed.
        about: What the file says of itself beside its contents; values are text, or anything JSON.

    Raises:
        InputError: What the format cannot hold.
        MissingExtraError: onnx is not installed.
        StoreError: The file cannot be written.
    """
    check_choice("format", form, get_args(Format))
    runtime = None if target is None else runtime_named(target)
    if runtime is not None and runtime.format != form:
        raise InputError(f"format must be {runtime.format} for the target {runtime.name}, got {form}")
    if int4 and runtime is not None and not runtime.stores_int4:
        raise InputError(f"int4 must be for a runtime that stores weights in four bits, got the target {runtime.name}")
    _check_installed()
    if form == "qonnx":
        from slimbit.exchange.qonnx_file import qonnx_model

        if int4 or opset is not None:
            raise InputError(f"int4 and opset must not be given for QONNX, got {'int4' if int4 else f'opset {opset}'}")
        model = qonnx_model(program, metadata=_texts(about))
    else:
        from slimbit.exchange.onnx_qdq import qdq_model

        symmetric = runtime is not None and not runtime.unsigned
        model = qdq_model(program, int4=int4, symmetric=symmetric, opset=opset, metadata=_texts(about))
    write_whole(Path(file), model.SerializeToString(deterministic=True))
    return Path(file)


def write_floats(
    file: str | Path,
    network: nn.Module,
    flow: "Dataflow",
    *,
    opset: int | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a network with float weights and activations; what integers are compared with in size and speed.

    Args:
        file: To write; an older file of that name is replaced.
        network: In evaluation mode.
        flow: What it computes.
        opset: Version of the ONNX operators.
        about: As for `write_integers`.

    Raises:
        InputError: An operation that has no ONNX form here.
        MissingExtraError: onnx is not installed.
        StoreError: The file cannot be written.
    """
    _check_installed()
    from slimbit.exchange.float_onnx import float_model
    from slimbit.exchange.onnx_qdq import DEFAULT_OPSET

    model = float_model(network, flow, opset=opset or DEFAULT_OPSET, metadata=_texts(about))
    write_whole(Path(file), model.SerializeToString(deterministic=True))
    return Path(file)


def _check_installed() -> None:
    if find_spec("onnx") is None:
        raise MissingExtraError("onnx", "onnx", "writing an ONNX file")


def _texts(about: Mapping[str, Any] | None) -> dict[str, str]:
    return {
        f"slimbit.{key}": value if isinstance(value, str) else canonical(value).decode()
        for key, value in (about or {}).items()
    }
