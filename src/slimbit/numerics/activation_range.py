"""Steps of activations: from a sample of a value's entries to the step at which it is rounded.

A quantizer of b bits has the codes 0 .. 2^b - 1 (unsigned, after a ReLU), or -2^(b-1) .. 2^(b-1) - 1 (signed). A
method chooses the **range** alpha beyond which entries are clipped; the step is ``alpha / (2^b - 1)``, or
``alpha / (2^(b-1) - 1)`` where signed.

* ``max``: the largest magnitude seen.
* ``percentile``: the magnitude that 99.9 % of the entries do not exceed.
* ``mse``: the range with the smallest mean squared error on the sample.
* ``aciq_laplace``, ``aciq_gauss``: analytic clipping of Banner et al. (arXiv 1810.05723): entries are taken for
  Laplace or Gauss distributed around zero, and the range is where clipping error and rounding error balance.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from slimbit.records.activations import RangeMethod, to_float32

PERCENTILE = 99.9
COARSE, SMALLEST_SHARE, FINE = 40, 0.02, 17
"""Ranges that ``mse`` tries: geometrically spaced down to that share of the largest, then evenly around the best."""


def activation_step(
    sample: Tensor, *, bits: int, signed: bool, method: RangeMethod, most: float | None = None
) -> float:
    """Step of one value, exact in float32.

    Args:
        sample: Entries of the value, any shape.
        bits: Width of the codes.
        signed: Whether there are negative codes.
        method: How the range is chosen.
        most: A range that is never exceeded: where a clamp cuts (ReLU6). The step is rounded down for it, so that
            the largest code does not lie above.

    Returns:
        Positive; 1 over the largest code where every entry is zero.

    >>> activation_step(torch.tensor([0.0, 3.0, 15.0]), bits=4, signed=False, method="max")
    1.0
    """
    codes = largest_code(bits, signed=signed)
    entries = sample.detach().reshape(-1).double()
    entries = entries if signed else entries.clamp(min=0)
    top = float(entries.abs().max()) if entries.numel() else 0.0
    if most is not None:
        top = min(top, most)
    if not top > 0:
        return to_float32(1.0 / codes)
    ranges: dict[RangeMethod, Callable[[], float]] = {
        "max": lambda: top,
        "percentile": lambda: _percentile(entries.abs()),
        "mse": lambda: _least_squares(entries, top, bits, signed=signed),
        "aciq_laplace": lambda: aciq_range(entries, bits=bits, signed=signed, gauss=False),
        "aciq_gauss": lambda: aciq_range(entries, bits=bits, signed=signed, gauss=True),
    }
    alpha = ranges[method]()
    alpha = min(alpha, top) if alpha > 0 else top
    step = to_float32(alpha / codes)
    if most is not None and step * codes > most:
        step = float(torch.nextafter(torch.tensor(step), torch.tensor(0.0)))
    return max(step, SMALLEST_STEP)


def affine_step(sample: Tensor, *, bits: int, method: RangeMethod) -> tuple[float, int]:
    """Step and zero point of codes 0 .. 2^b - 1 for values of both signs: ``real = step * (code - zero_point)``.

    The range is that of the sample, from its smallest to its largest entry and over zero, with each end drawn in as
    far as the method says: to the percentile or to the analytic range of its magnitudes, or both by the share with the
    smallest mean squared error.

    Args:
        sample: Entries of the value, any shape.
        bits: Width of the codes.
        method: How the range is chosen.

    Returns:
        The step, exact in float32, and the code of zero.

    >>> affine_step(torch.tensor([-1.0, 0.0, 3.0]), bits=2, method="max")
    (1.3333333730697632, 1)
    """
    codes = largest_code(bits, signed=False)
    entries = sample.detach().reshape(-1).double()
    low, high = min(0.0, float(entries.min())), max(0.0, float(entries.max()))
    if not high > low:
        return to_float32(1.0 / codes), 0
    if method == "percentile":
        reach = _percentile(entries.abs())
    elif method in ("aciq_laplace", "aciq_gauss"):
        reach = aciq_range(entries, bits=bits, signed=True, gauss=method == "aciq_gauss")
    else:
        reach = max(-low, high)
    ends = (max(low, -reach), min(high, reach)) if reach > 0 else (low, high)

    def step_of(share: float) -> tuple[float, int]:
        step = max(to_float32(share * (ends[1] - ends[0]) / codes), SMALLEST_STEP)
        return step, min(codes, max(0, round(-share * ends[0] / step)))

    def error(share: float) -> float:
        step, zero = step_of(share)
        return float((entries - rounded(entries, step, low=-zero, high=codes - zero)).square().sum())

    if method != "mse":
        return step_of(1.0)
    return step_of(min((math.pow(SMALLEST_SHARE, k / (COARSE - 1)) for k in range(COARSE)), key=error))


SMALLEST_STEP = to_float32(1e-20)
"""Products of a few steps stay far from the smallest float32."""


def largest_code(bits: int, *, signed: bool) -> int:
    """The largest positive code.

    >>> largest_code(8, signed=False), largest_code(8, signed=True)
    (255, 127)
    """
    return (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1


def rounded(values: Tensor, step: float, *, low: int, high: int) -> Tensor:
    """``step * clamp(round(values / step), low, high)``, half to even."""
    return (values / step).round().clamp(low, high) * step


def _percentile(magnitudes: Tensor) -> float:
    rank = max(1, math.ceil(round(PERCENTILE * magnitudes.numel() / 100, 6)))
    value: float = magnitudes.kthvalue(rank).values.item()
    return value


def _least_squares(entries: Tensor, top: float, bits: int, *, signed: bool) -> float:
    codes = largest_code(bits, signed=signed)
    low = -codes - 1 if signed else 0

    def error(alpha: float) -> float:
        return float((entries - rounded(entries, alpha / codes, low=low, high=codes)).square().sum())

    coarse = [top * math.pow(SMALLEST_SHARE, k / (COARSE - 1)) for k in range(COARSE)]
    best = min(range(COARSE), key=lambda k: error(coarse[k]))
    left, right = coarse[min(best + 1, COARSE - 1)], coarse[max(best - 1, 0)]
    fine = [left + (right - left) * k / (FINE - 1) for k in range(FINE)]
    return min([coarse[best], *fine], key=error)


def aciq_range(entries: Tensor, *, bits: int, signed: bool, gauss: bool) -> float:
    """Clipping value of ACIQ: a multiple of the distribution's scale, from `aciq_ratio`.

    The scale is ``b = mean |x|`` (Laplace) or ``sigma = sqrt(mean x^2)`` (Gauss). After a ReLU the entries are the
    positive half of such a distribution: its scale is taken over them alone, and b bits over [0, alpha] are as fine
    as b + 1 bits over [-alpha, alpha].
    """
    taken = entries if signed else entries[entries > 0]
    scale = float(taken.square().mean().sqrt()) if gauss else float(taken.abs().mean())
    return scale * aciq_ratio(bits if signed else bits + 1, gauss=gauss)


@cache
def aciq_ratio(bits: int, *, gauss: bool) -> float:
    """Range over scale that minimizes clipping plus rounding error for b bits over [-alpha, alpha].

    Laplace: ``d/d alpha [2 b^2 exp(-alpha / b) + alpha^2 / (3 * 4^bits)] = 0``. Gauss:
    ``d/d alpha [(alpha^2 + sigma^2) (1 - erf(alpha / (sigma sqrt 2))) - sqrt(2 / pi) alpha sigma
    exp(-alpha^2 / (2 sigma^2)) + alpha^2 / (3 * 4^bits)] = 0``. Both derivatives rise in alpha: bisection.

    >>> [round(aciq_ratio(b, gauss=False), 2) for b in (2, 3, 4, 8)]
    [2.83, 3.9, 5.03, 9.9]
    """

    def slope(ratio: float) -> float:
        rounding = 2 * ratio / (3 * 4.0**bits)
        if gauss:
            tail = ratio * math.erfc(ratio / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-(ratio**2) / 2)
            return 2 * tail + rounding
        return rounding - 2 * math.exp(-ratio)

    low, high = 0.0, 40.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2
