"""Steps of one layer: from a bit width (``max_abs``, ``sigma``), or from what its levels may cost (``signal``)."""

import math
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from slimbit.numerics.grid import to_levels
from slimbit.records.config import Grid
from slimbit.records.errors import InputError

Policy = Literal["max_abs", "sigma"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


def max_abs_step(weights: Tensor, bits: float) -> Tensor:
    """``step = max|W| / 2^(bits-1)``, the paper's quantize-only baseline; ``bits`` may be fractional.

    Args:
        weights: One layer, any shape, not all zero.
        bits: Bit width, at least 1.

    Returns:
        Scalar of the weights' type.

    >>> max_abs_step(torch.tensor([0.5, -2.0]), 3).item()
    0.5
    """
    largest = torch.maximum(weights.amax(), -weights.amin())
    return largest / float(2 ** (bits - 1))


def sigma(weights: Tensor) -> Tensor:
    """``sqrt(||W||^2 / ||W||_0)``: root mean square of the weights that are not zero, for steps in its multiples.

    Of weights around 0 it is the standard deviation. Not that one: the error of a step is about
    ``||W||_0 step^2 / 12``, so ``step = k sigma`` gives every layer S/N = 12 / k^2, whatever its mean is and however
    many of its weights are pruned.

    Args:
        weights: One layer or filter, any shape.

    Returns:
        Scalar of the weights' type; 0 where all weights are zero.

    >>> sigma(torch.tensor([1.0, -7.0, 0.0])).item()  # sqrt((1 + 49) / 2)
    5.0
    """
    wide = torch.float32 if weights.device.type == "mps" else torch.float64
    power = weights.square().sum(dtype=wide) / torch.count_nonzero(weights).clamp(min=1)
    return power.sqrt().to(weights.dtype)


def sigma_step(weights: Tensor, bits: int) -> Tensor:
    """``step = k(bits) * sigma``: the same signal-to-noise ratio in every layer of Gaussian weights (see `sigma`).

    Args:
        weights: One layer, any shape, not all zero.
        bits: Whole bit width, at least 1.

    Returns:
        Scalar of the weights' type.

    >>> round(sigma_step(torch.tensor([1.0, -1.0]), 2).item(), 4)
    0.9957
    """
    return sigma(weights) * gaussian_step(bits)


FINEST = 2.0**13
"""Largest level of the finest step: levels must fit into the 16 bits of the store."""


def signal_step(weights: Tensor, target: float, *, grid: Grid = "midrise") -> tuple[float, bool]:
    """The step at which ``sum q^2 = target``, by bisection (Appendix B of Prune or quantize? (2019), reconstructed).

    No level grows when the step grows, in floating point neither, so the sum falls, in jumps. Found is the smallest
    step, among those that the weights' type can hold, whose sum is at most the target: with the next finer one it
    would be more. Where no step has so small a sum (on the grid ``midrise`` it is at least a quarter per weight), it is
    the smallest step with the least sum; where every sum is smaller, it is the finest step, ``max|W| / 2^13``.

    Args:
        weights: One layer, any shape.
        target: Zero or more; may be infinite.
        grid: Grid.

    Returns:
        The step (1 where all weights are zero: any does then), and whether the target lies within reach.

    Raises:
        InputError: A target that is negative or not a number.

    >>> step, reached = signal_step(torch.tensor([-0.3, 0.5, 0.9]), 3.0)  # levels -0.5, 0.5, 1.5: 0.25 + 0.25 + 2.25
    >>> round(step, 6), reached, signal_step(torch.tensor([-0.3, 0.5, 0.9]), 0.5)[1]  # three weights: 0.75 at least
    (0.5, True, False)
    """
    if not target >= 0:
        raise InputError(f"target of a step must be zero or more, got {target}")
    wide = torch.float32 if weights.device.type == "mps" else torch.float64

    def spent(step: float) -> float:
        levels = to_levels(weights, weights.new_tensor(step), grid=grid)
        return float(levels.to(wide).square_().sum())

    largest = float(weights.abs().max()) if weights.numel() else 0.0
    if largest == 0:
        return 1.0, target == 0
    low, high = (float(weights.new_tensor(step)) for step in (largest / FINEST, 5 * largest))  # 4 would do but for ties
    most, least = spent(low), spent(high)
    if most <= target:
        return low, most == target
    while low < (middle := float(weights.new_tensor(math.sqrt(low * high)))) < high:
        low, high = (middle, high) if spent(middle) > max(target, least) else (low, middle)
    return high, target >= least


@cache
def gaussian_step(bits: int) -> float:
    """``k`` that minimizes the error of a mid-rise quantizer with ``2^bits`` levels on a unit Gaussian.

    Golden-section search on the closed form of the error; the values are Table II of J. Max,
    "Quantizing for minimum distortion" (IRE Trans. Inf. Theory 1960).

    >>> [round(gaussian_step(bits), 4) for bits in (1, 2, 3, 4)]
    [1.5958, 0.9957, 0.586, 0.3352]
    """
    low, high = 1e-6, 4.0
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-7:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if _gaussian_error(left, bits) < _gaussian_error(right, bits):
            high = right
        else:
            low = left
    return (low + high) / 2


def _gaussian_error(step: float, bits: int) -> float:
    """``E[(x - Q(x))^2]`` of a unit Gaussian, by its cells on the positive side."""
    edges = torch.arange(2 ** (bits - 1) + 1, dtype=torch.float64) * step
    edges[-1] = math.inf
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    tail = torch.special.erfc(edges / math.sqrt(2)) / 2
    moment = torch.where(edges.isinf(), 0.0, edges * density)
    mass = tail[:-1] - tail[1:]
    first = density[:-1] - density[1:]
    second = mass + moment[:-1] - moment[1:]
    value = (torch.arange(len(mass), dtype=torch.float64) + 0.5) * step
    return 2 * float((second - 2 * value * first + value.square() * mass).sum())
