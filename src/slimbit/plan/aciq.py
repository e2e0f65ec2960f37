"""Policy ``aciq``: the widths and steps of Banner et al. (NeurIPS 2019, arXiv 1810.05723), a baseline."""

import torch
from torch import Tensor

from slimbit.numerics.aciq import WIDEST, allocated_widths
from slimbit.numerics.grid import largest_level
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import grid_of
from slimbit.records.config import ACIQ, QuantConfig
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.records.setting import Bits


def step_by_aciq(inputs: PlanInputs, bits: float, config: QuantConfig = ACIQ) -> CompressionPlan:
    """``step_f = max|W_f| / 2^(M_f - 1)`` with the widths of `slimbit.numerics.aciq.allocated_widths`.

    Layers with a filter of 8 bits get the mid-tread grid, whose last level is at ``max|W_f|``. As in the authors'
    experiments the first and the last layer have 8 bits, and widths are allocated up to 4 bits; above, all filters
    have the same. Bias correction follows where the plan is carried out, and activations get the ranges of analytic
    clipping: ``config`` says both. Activations have one width per value, not one per channel, since no runtime has
    such.

    Args:
        inputs: Layers and weights.
        bits: Mean width of a layer's filters, 2 to 8.
        config: Grid, layers to skip, and how the plan will be carried out; default: as published.

    Raises:
        InputError: ``bits`` out of range.
    """
    if not (isinstance(bits, int | float) and NARROWEST <= bits <= WIDEST):
        raise InputError(f"bits must be from {NARROWEST} to {WIDEST}, got {bits!r}")
    config = config.for_metric(None)
    names = [layer.name for layer in inputs.spec.layers]

    def planned(layer: LayerSpec, weights: Tensor) -> LayerPlan:
        ranges = weights.flatten(1).abs().amax(dim=1)
        is_end = layer.name in (names[0], names[-1])
        if is_end or bits > MOST_ALLOCATED:
            widths = torch.full((len(ranges),), WIDEST if is_end else bits).where(ranges > 0, 0)
        else:
            widths = allocated_widths(ranges, bits)
        grid = grid_of(config)
        if int(widths.max()) == WIDEST:  # mid-rise levels of 8 bits are no 8-bit integers
            grid, widths = "midtread", torch.where(widths > 0, widths.clamp(min=2), 0)
        ends = 2.0 ** (widths - 1) - (1.0 if grid == "midtread" else 0.0)
        steps = torch.where(widths > 0, ranges / ends.clamp(min=0.5), 1.0)
        kept = tuple(f for f, width in enumerate(widths.tolist()) if width > 0)
        return LayerPlan(
            name=layer.name,
            steps=tuple(steps.tolist()),
            grid=grid,
            limits=tuple(largest_level(max(width, 1), grid) for width in widths.tolist()),
            kept=None if len(kept) == len(ranges) else kept,
        )

    layers = tuple(planned(layer, inputs.weight(layer)) for layer in inputs.layers(config))
    return CompressionPlan(
        network=inputs.spec.name, policy="aciq", layers=layers, setting=Bits(float(bits)), config=config
    )


NARROWEST = 2
MOST_ALLOCATED = 4
