"""Operations of a `Dataflow` on tensors, floats or integers carried in them: moving, pooling, functions, windows."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slimbit.records.dataflow import Operation

_CONVOLUTIONS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAXIMA: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def multiply_weights(values: Tensor, weight: Tensor, layer: Operation) -> Tensor:
    """What a layer does without its bias.

    Args:
        values: What it reads, zeros where zeros are.
        weight: As the network stores it: a transposed convolution has its inputs first.
        layer: Of kind "layer".
    """
    if layer["form"] == "linear":
        return F.linear(values, weight)
    dims = len(layer["stride"])
    if layer["form"] == "conv_transpose":
        padding = tuple(low for low, _ in layer["padding"])
        spread: Tensor = _TRANSPOSED[dims](
            values, weight, None, layer["stride"], padding, layer["output_padding"], layer["groups"], layer["dilation"]
        )
        return spread
    padding = tuple(low for low, _ in layer["padding"])
    if any(low != high for low, high in layer["padding"]):
        values, padding = F.pad(values, flat_padding(layer["padding"])), (0,) * dims
    sums: Tensor = _CONVOLUTIONS[dims](
        values, weight, None, layer["stride"], padding, layer["dilation"], layer["groups"]
    )
    return sums


def flat_padding(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Padding as torch takes it: the last dimension first.

    >>> flat_padding(((1, 2), (3, 4)))
    [3, 4, 1, 2]
    """
    return [amount for pair in reversed(pairs) for amount in pair]


def window_sums(values: Tensor, average: Operation) -> Tensor:
    """Sum over each window of an "average"."""
    kernel = average["kernel"]
    if kernel == tuple(values.shape[2:]) and not any(map(any, average["padding"])):
        return values.sum(dim=tuple(range(2, values.ndim)), keepdim=True)
    if any(map(any, average["padding"])):
        values = F.pad(values, flat_padding(average["padding"]))
    for axis, (size, stride) in enumerate(zip(kernel, average["stride"], strict=True), start=2):
        values = values.unfold(axis, size, stride).sum(-1)
    return values


def largest(values: Tensor, maximum: Operation) -> Tensor:
    """Largest entry of each window; padding never wins."""
    padding = tuple(low for low, _ in maximum["padding"])
    result: Tensor = _MAXIMA[len(padding)](
        values, maximum["kernel"], maximum["stride"], padding, maximum["dilation"], maximum["ceil"]
    )
    return result


def moved(values: Tensor, move: Operation) -> Tensor:
    """Entries in other places; new ones are zero."""
    match move["move"]:
        case "reshape":
            return values.reshape(len(values), *move.shape)
        case "permute":
            return values.permute(move["axes"])
        case "slice":
            index = [slice(None)] * values.ndim
            index[move["axis"]] = slice(move["start"], move["stop"], move["step"])
            return values[tuple(index)]
        case "pad":
            return F.pad(values, flat_padding(move["amounts"]))
        case "nearest":
            for axis, factor in enumerate(move["factors"], start=2):
                values = values.repeat_interleave(factor, dim=axis)
            return values
        case "pixel_shuffle":
            return F.pixel_shuffle(values, move["factor"])
        case other:
            raise AssertionError(other)


def function_of(values: Tensor, function: Operation) -> Tensor:
    """An activation function in floats."""
    if function["function"] == "clamp":
        return values.clamp(function["low"], function["high"])
    result: Tensor = _FUNCTIONS[function["function"]](values, *function["arguments"])
    return result


_FUNCTIONS: dict[str, Any] = {
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "mish": F.mish,
    "gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    "leaky_relu": F.leaky_relu,
    "elu": torch.ops.aten.elu.default,
    "softplus": F.softplus,
    "selu": F.selu,
    "softsign": F.softsign,
    "exp": torch.exp,
    "abs": torch.abs,
    "square": torch.square,
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
}

NEVER_NEGATIVE = frozenset({"sigmoid", "hardsigmoid", "softplus", "exp", "abs", "square", "softmax"})
"""Functions whose values are zero or more."""


def per_channel(values: Tensor, ndim: int) -> Tensor:
    """One number per channel, shaped to line up with values ``(batch, channels, ...)``."""
    return values.reshape(1, -1, *[1] * (ndim - 2)) if values.numel() > 1 else values.reshape(())
