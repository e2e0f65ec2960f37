"""Weights as Banner et al. quantize them (NeurIPS 2019, arXiv 1810.05723): a width per filter, and bias correction.

Their analytic clipping of activations is `slimbit.numerics.activation_range.aciq_range`.
"""

import math

import torch
from torch import Tensor

from slimbit.numerics.grid import along_filters

WIDEST = 8
STEPS = 60
MARGIN = 1e-6
"""Of the quota below the largest: rounding errors do not decide where several filters gain a bit at once."""


def allocated_widths(ranges: Tensor, bits: float) -> Tensor:
    """Width of each filter: the mean squared error is least where ``2^M_i`` is in proportion to ``range_i^(2/3)``.

    ``M_i = round(log2(B range_i^(2/3) / sum_j range_j^(2/3)))``, between 0 and 8. The quota B is the largest at which
    the filters have no more than ``bits`` bits on average.

    Args:
        ranges: Largest magnitude of each filter, shape ``(filters,)``.
        bits: Mean width that is allowed.

    Returns:
        Whole numbers, shape ``(filters,)``; 0 = the filter is pruned.

    >>> allocated_widths(torch.tensor([1.0, 1.0, 8.0, 0.0]), 3).tolist()  # 8^(2/3) = 4: two bits more
    [3, 3, 5, 0]
    """
    alive = ranges > 0
    shares = (torch.where(alive, ranges, 1.0).double().log2() * (2 / 3)).round(decimals=9)

    def widths(shift: float) -> Tensor:
        return torch.where(alive, (shares + shift + 0.5).floor().clamp(0, WIDEST), 0.0)

    low = -float(shares.max()) - 1
    high = low + WIDEST + 2 + float(shares.max() - shares.min())
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(widths(middle).mean()) <= bits + 1e-9 else (low, middle)
    return widths(low - MARGIN).long()


def norm_ratio(weights: Tensor, rounded: Tensor) -> Tensor:
    """``xi_f = ||W_f - mean W_f|| / ||Wq_f - mean Wq_f||``: what rounding did to the spread of each filter.

    Args:
        weights: Float, filters first.
        rounded: Quantized, same shape.

    Returns:
        Shape ``(filters,)``; 1 where the quantized weights of a filter are all alike.
    """
    spread, left = ((x - x.mean(dim=1, keepdim=True)).norm(dim=1) for x in (_rows(weights), _rows(rounded)))
    known = left > EQUAL * math.sqrt(weights[0].numel()) * _rows(rounded).abs().amax(dim=1)
    return torch.where(known & (spread > 0), spread / left, 1.0).to(weights.dtype)


EQUAL = 1e-7
"""Weights whose spread is this share of their size are all alike but for the last digit."""


def bias_corrected(weights: Tensor, rounded: Tensor) -> Tensor:
    """``xi_f (Wq_f + mu_f)`` with ``mu_f = mean W_f - mean Wq_f``: quantized weights with mean and spread repaired.

    Args:
        weights: Float, filters first.
        rounded: Quantized, same shape.

    >>> bias_corrected(torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 4.0]])).tolist()  # spread twice that of 2 and 4
    [[4.0, 8.0]]
    """
    mean = _rows(weights).mean(dim=1) - _rows(rounded).mean(dim=1)
    xi = norm_ratio(weights, rounded)
    return along_filters(xi, rounded) * (rounded + along_filters(mean.to(rounded.dtype), rounded))


def _rows(weights: Tensor) -> Tensor:
    return weights.double().flatten(1)
