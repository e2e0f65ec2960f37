"""From sums of integers to the codes of the next value: the arithmetic that runtimes do, and where it is ambiguous.

A layer's sums are exact integers; one multiplication in float32 and one rounding (half to even) make codes of them:
``code = clamp(round(float32(sum) * m) + zero_point)``, ``m = (step_in * step_weight) / step_out`` in float32. Every
runtime does this in the same order. Sums of two values, products, averages and functions are done in float by some
and in fixed point by others; there only the real result counts, so no combination of codes may come near a tie.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from slimbit.numerics.operations import function_of
from slimbit.records.activations import ActivationQuantizer, to_float32
from slimbit.records.dataflow import Stage

ROUNDINGS = 3
"""Float32 roundings that an implementation may make on its way, each of half a unit in the last place."""
FUNCTION_ERROR = 3e-5
"""How far off, in steps, runtimes' own sigmoids and the like may be."""
TRIES, SHIFT = 400, 2.0**-14
"""Steps that are tried, and how far they are apart."""


def multiplier(input_step: float, weight_steps: Tensor, output_step: float) -> Tensor:
    """``(step_in * step_weight) / step_out`` as float32 arithmetic gives it."""
    one = torch.tensor(input_step, dtype=torch.float32)
    return one * weight_steps.float() / torch.tensor(output_step, dtype=torch.float32)


def requantized(sums: Tensor, factor: Tensor, *, low: int, high: int) -> Tensor:
    """Codes, counted from the zero point, of exact integer sums: ``clamp(round(float32(sums) * factor))``.

    Args:
        sums: Exact integers in float32 or float64.
        factor: Float32, shaped to line up.
        low: Smallest code.
        high: Largest.

    >>> requantized(torch.tensor([5.0, 7.0, -3.0]), torch.tensor(0.5), low=0, high=255).tolist()
    [2.0, 4.0, 0.0]
    """
    return (sums.float() * factor).round_().clamp_(low, high)


def codes_of(quantizer: ActivationQuantizer) -> tuple[int, int]:
    """Smallest and largest code, counted from the zero point."""
    return quantizer.low - quantizer.zero_point, quantizer.high - quantizer.zero_point


def clamped_codes(stage: Stage, output: ActivationQuantizer) -> tuple[int, int]:
    """Codes, counted from the zero point, that a stage's result is clamped to: its quantizer's and its own clamp's."""
    low, high = codes_of(output)
    if stage.low is not None:
        low = max(low, round(stage.low / output.step))
    if stage.high is not None:
        high = min(high, round(stage.high / output.step))
    return low, max(low, high)


def untied(stage: Stage, inputs: Sequence[ActivationQuantizer], output: ActivationQuantizer) -> ActivationQuantizer:
    """The output's quantizer with the nearest smaller step at which no combination of input codes is near a tie.

    Near: so close that float32 arithmetic in another order could round to the other side.

    Args:
        stage: A sum, product, average or function.
        inputs: Quantizers of what it reads.
        output: Quantizer of its value; it may be one of the inputs, too, and then moves as both.

    Returns:
        The quantizer; its step shrinks by at most ``TRIES * SHIFT``, 2.4 %, nearly always by less than 0.1 %.
    """
    best, widest = output, -1.0
    for number in range(TRIES):
        moved = replace(output, step=to_float32(output.step * (1 - number * SHIFT)))
        room = tie_distance(stage, [moved if x.value == output.value else x for x in inputs], moved)
        if room >= 1:
            return moved
        if room > widest:
            best, widest = moved, room
    return best


def tie_distance(stage: Stage, inputs: Sequence[ActivationQuantizer], output: ActivationQuantizer) -> float:
    """Smallest distance of a result from a rounding tie, in units of what float32 arithmetic may be off by.

    Over all combinations of codes whose result is not clamped anyway; infinite where none is left.
    """
    exact, error = results(stage, inputs, output)
    low, high = clamped_codes(stage, output)
    open_ = (exact > low - 0.75) & (exact < high + 0.75)
    exact, error = exact[open_], error[open_]
    if not exact.numel():
        return float("inf")
    distance = (exact - exact.floor() - 0.5).abs()
    return float((distance / error).min())


def results(stage: Stage, inputs: Sequence[ActivationQuantizer], output: ActivationQuantizer) -> tuple[Tensor, Tensor]:
    """Every result that a stage can have, in output steps before rounding, and how far float32 may be off; float64."""
    codes = [torch.arange(low, high + 1).double() for low, high in map(codes_of, inputs)]
    ratios = [quantizer.step / output.step for quantizer in inputs]
    unit = ROUNDINGS * 2.0**-24
    head = stage.head
    if head.kind == "add":
        left, right = codes[0][:, None] * ratios[0], codes[1] * ratios[1]
        # implementations that keep the zero point in the codes add larger numbers
        largest = sum(2 * max(map(abs, codes_of(x))) * ratio for x, ratio in zip(inputs, ratios, strict=True))
        size = torch.minimum(left.abs() + right.abs() + 128, torch.tensor(largest + 1.0).double())
        return (left + right).flatten(), (unit * size).flatten()
    if head.kind == "multiply":
        product = (codes[0][:, None] * codes[1] * ratios[0] * inputs[1].step).flatten()
        return product, unit * (product.abs() + 1)
    if head.kind == "average":
        count = int(torch.tensor(head["kernel"]).prod())
        low, high = codes_of(inputs[0])
        mean = torch.arange(low * count, high * count + 1).double() * ratios[0] / count
        return mean, unit * (mean.abs() + 128)
    values = function_of(codes[0] * inputs[0].step, head) / output.step
    return values, torch.full_like(values, FUNCTION_ERROR)
