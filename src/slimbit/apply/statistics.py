"""BatchNorm statistics and biases after compression, corrected while the calibration images pass."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from slimbit.numerics.moments import ChannelMoments, absolute_statistics, paired_statistics

Kind = Literal["absolute", "paired"]


def correct_batchnorm(
    module: _BatchNorm,
    stored: tuple[Tensor, Tensor],
    *,
    original: ChannelMoments,
    quantized: ChannelMoments,
    kind: Kind,
) -> None:
    """Write new running statistics into a BatchNorm; nothing else of it changes.

    Args:
        module: Of the compressed network.
        stored: Running mean and variance of the float network.
        original: Moments of its input in the float network.
        quantized: Moments of its input in the compressed network, on the same images.
        kind: "absolute" or "paired", see `slimbit.numerics.moments`.
    """
    if kind == "absolute":
        mean, variance = absolute_statistics(quantized)
    else:
        mean, variance = paired_statistics(
            stored[0].double(), stored[1].double(), original=original, quantized=quantized
        )
    assert module.running_mean is not None
    assert module.running_var is not None
    with torch.no_grad():
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)


def correct_bias(bias: Tensor, *, original: ChannelMoments, quantized: ChannelMoments) -> Tensor:
    """Move a bias so that the layer's mean output is what it was; returns the shift, shape ``(filters,)``."""
    shift = (original.mean - quantized.mean).to(bias.dtype)
    with torch.no_grad():
        bias.add_(shift)
    return shift
