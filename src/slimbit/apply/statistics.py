"""BatchNorm statistics and biases after compression."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from slimbit.numerics.moments import ChannelMoments, absolute_statistics, paired_statistics


def correct_batchnorm(
    module: _BatchNorm, *, original: ChannelMoments, quantized: ChannelMoments, form: Literal["absolute", "paired"]
) -> None:
    """Write new running statistics into a BatchNorm that still has the stored ones; nothing else of it changes.

    Args:
        module: Of the compressed network.
        original: Moments of its input in the float network.
        quantized: Moments of its input in the compressed network, on the same images.
        form: "absolute" or "paired", see `slimbit.numerics.moments`.
    """
    mean, variance = module.running_mean, module.running_var
    assert mean is not None
    assert variance is not None
    if form == "absolute":
        new = absolute_statistics(quantized)
    else:
        new = paired_statistics(mean.double(), variance.double(), original=original, quantized=quantized)
    with torch.no_grad():
        mean.copy_(new[0])
        variance.copy_(new[1])


def correct_bias(bias: Tensor, *, original: ChannelMoments, quantized: ChannelMoments) -> Tensor:
    """Move a bias so that the layer's mean output is what it was; returns the shift, shape ``(filters,)``."""
    shift = (original.mean - quantized.mean).to(bias.dtype)
    with torch.no_grad():
        bias.add_(shift)
    return shift
