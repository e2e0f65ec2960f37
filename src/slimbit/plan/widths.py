"""Policy ``optimal`` for any cost: from a table of what every layer costs at every width to the widths of a price.

The choice minimizes predicted loss + price x cost (a Lagrangian): each layer takes one width for its weights, filters
whose share of the cost is more than they are worth are dropped, and values between layers take the width that suits
all layers which read them. Equal costs, as of widths that a machine pads, go to the wider one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from slimbit.numerics.allocate import MAX_WIDTH, loss_at_widths
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import as_integers, by_width, check_price, compensation_factor, grid_of, make_plan
from slimbit.records.config import QuantConfig
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.records.setting import Bits, Price

INTEGER_WIDTHS = {"midtread": 7, "midrise": 6}
"""Widest weights beside quantized activations: those whose integers are at most `LARGEST_INTEGER`."""


@dataclass(frozen=True, kw_only=True)
class ActivationChoice:
    """Values between layers whose width is chosen together.

    Attributes:
        points: Names of their quantizers.
        layers: The layers that read them.
        loss: Predicted loss (nats) of all of them together at each of `WidthCosts.activation_bits`.
    """

    points: tuple[str, ...]
    layers: tuple[str, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class WidthCosts:
    """What every layer costs at every width.

    Attributes:
        weight_bits: Widths that a layer's weights may take, rising.
        costs: By layer name, of the layers that are decided on: a row for each of ``weight_bits``, a column for each of
            ``activation_bits``, or one where the width of what it reads is fixed; infinite where the machine does not
            run it.
        activation_bits: Widths that values between layers may take, rising; empty where they are not decided on.
        activations: What is decided about them.
        drop_factor: What the predicted loss of a dropped filter is multiplied by, as rounding is predicted to lose more
            than it does.
    """

    weight_bits: tuple[int, ...]
    costs: Mapping[str, Tensor]
    activation_bits: tuple[int, ...] = ()
    activations: tuple[ActivationChoice, ...] = field(default=())
    drop_factor: float = 1.0


def weight_widths(config: QuantConfig) -> tuple[int, ...]:
    """Bit widths that a layer's weights may take; one bit of mid-tread holds nothing but zero."""
    grid = grid_of(config)
    most = MAX_WIDTH if config.activation_bits is None else INTEGER_WIDTHS[grid]
    return tuple(range(2 if grid == "midtread" else 1, most + 1))


def equal_widths(inputs: PlanInputs, bits: int, config: QuantConfig) -> CompressionPlan:
    """Every filter of every layer at one width, each with the step that suits its weights: rows of the table."""

    def steps(layer: LayerSpec, weights: Tensor) -> LayerPlan:
        table = inputs.width_table(layer, grid_of(config))
        return as_integers(by_width(layer, table, [bits] * layer.filters, config), weights, config)

    return make_plan("equal", inputs, steps, config, Bits(float(bits)))


def widths_by_price(
    inputs: PlanInputs, price: float, metric: str, config: QuantConfig, table: WidthCosts
) -> tuple[CompressionPlan, dict[str, int]]:
    """Policy ``optimal`` for a cost that no closed form is known for.

    Args:
        inputs: Layers, weights, and the sensitivity.
        price: Loss (nats) one is willing to pay per unit of the cost; cost falls when it grows.
        metric: Name of the cost.
        config: Layers to skip, grid, and how the plan will be carried out; one step per filter.
        table: What each layer costs at each width.

    Returns:
        The plan, and the width of each quantizer of values that was decided on.

    Raises:
        InputError: A price that is not positive, or no sensitivity.
    """
    check_price(price, metric)
    sensitivity, grid = inputs.checked_sensitivity(), grid_of(config)
    losses, stays = {}, {}
    for layer in inputs.layers(config):
        s = inputs.weights[layer.name].new_tensor(sensitivity.filters[layer.name])
        losses[layer.name], stays[layer.name] = loss_at_widths(
            inputs.width_table(layer, grid),
            price,
            sensitivity=s,
            cost=table.costs[layer.name].to(s.device),
            widths=table.weight_bits,
            compensation_factor=compensation_factor(inputs, layer, config),
            drop_factor=table.drop_factor,
        )
    column = dict.fromkeys(losses, 0)
    widths: dict[str, int] = {}
    for choice in table.activations:
        total = torch.tensor(choice.loss, dtype=torch.float64)
        for name in choice.layers:
            total += losses[name].amin(0).cpu()
        best = int(total.argmin())
        column |= dict.fromkeys(choice.layers, best)
        widths |= dict.fromkeys(choice.points, table.activation_bits[best])

    def steps(layer: LayerSpec, weights: Tensor) -> LayerPlan:
        place = column[layer.name]
        row = int(losses[layer.name][:, place].argmin())
        chosen = (table.weight_bits[row] * stays[layer.name][:, row, place]).tolist()
        found = by_width(layer, inputs.width_table(layer, grid), chosen, config)
        return as_integers(found, weights, config)

    plan = make_plan("optimal", inputs, steps, config, Price(float(price), metric))
    return plan, widths


def price_bounds(inputs: PlanInputs, config: QuantConfig, table: WidthCosts) -> tuple[float, float]:
    """Prices beyond which nothing changes: every layer as wide as it gets below, nothing left above.

    Raises:
        InputError: The same cost at every width, whatever is dropped.
    """
    sensitivity, grid = inputs.checked_sensitivity(), grid_of(config)
    prices: list[float] = []
    for layer in inputs.layers(config):
        errors = inputs.width_table(layer, grid).error
        loss = 0.5 * errors.new_tensor(sensitivity.filters[layer.name])[:, None] * errors
        rounding = compensation_factor(inputs, layer, config) * loss[:, list(table.weight_bits)]
        cost = table.costs[layer.name].to(errors)
        finite = cost[cost.isfinite()]
        if not len(finite) or not float(finite.max()) > 0:
            continue
        share = float(finite[finite > 0].min()) / layer.filters
        prices.append(float((table.drop_factor * loss[:, 0] - rounding.amin(1)).max()) / share)
        whole = rounding.sum(0)
        gaps = (cost[:, None] - cost[None]).flatten(2).amax(2)
        rise = whole[None] - whole[:, None]
        found = rise[(gaps > 0) & gaps.isfinite() & (rise > 0)] / gaps[(gaps > 0) & gaps.isfinite() & (rise > 0)]
        prices += [float(found.min())] if len(found) else []
    for choice in table.activations:
        costs = torch.stack([table.costs[name].nan_to_num(posinf=0.0).amax(0) for name in choice.layers]).sum(0)
        falls = [before - after for before, after in pairwise(choice.loss) if before > after]
        prices += [min(falls) / float(costs.max())] if falls and float(costs.max()) > 0 else []
    known = [price for price in prices if price > 0]
    if not known:
        raise InputError("cost must be one that widths or dropped filters change, got the same for all")
    return min(known) / 2, max(known) * 2
