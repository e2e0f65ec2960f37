"""Policies: each returns a `CompressionPlan` with a step for every layer. They look at numbers, never at data."""

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from slimbit.numerics.allocate import WidthTable, analog_step, best_widths, digital_step
from slimbit.numerics.grid import along_filters, largest_level, to_levels
from slimbit.numerics.rounding import level_cost
from slimbit.numerics.steps import max_abs_step, sigma
from slimbit.plan.inputs import PlanInputs
from slimbit.records.config import PAPER, Grid, QuantConfig
from slimbit.records.cost_names import Allocation, allocation_of, check_cost_name, check_priceable
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.records.setting import Bits, Price, Setting, Sigma


def step_by_range(inputs: PlanInputs, bits: float, config: QuantConfig = PAPER) -> CompressionPlan:
    """``step = max|W| / 2^(bits-1)``: the paper's quantize-only baseline, policy ``max_abs``.

    Args:
        inputs: Layers and weights.
        bits: At least 1; fractions make a smooth sweep. Levels are clipped to `largest_level(bits)`.
        config: Grid, granularity, layers to skip, and how the plan will be carried out; default: the paper's.

    Raises:
        InputError: ``bits`` outside 1 ... 16.
    """
    if not (isinstance(bits, int | float) and 1 <= bits <= 16):
        raise InputError(f"bits must be from 1 to 16, got {bits!r}")

    config = config.for_metric(None)
    limit = largest_level(bits, grid_of(config))

    def steps(layer: LayerSpec, weights: Tensor) -> LayerPlan:
        chosen = [float(max_abs_step(part, bits)) for part in _parts(weights, config)]
        return layer_plan(layer, weights, chosen, config, limits=(limit,))

    return make_plan("max_abs", inputs, steps, config, Bits(float(bits)))


def step_by_deviation(inputs: PlanInputs, k: float, config: QuantConfig = PAPER) -> CompressionPlan:
    """``step = k * sigma``: equal signal-to-noise ratio everywhere, 12 / k^2; policy ``sigma``.

    Sigma is the root mean square of the weights that are not zero, as in ``slimbit.cost(policy="sigma")``, see
    `slimbit.numerics.steps.sigma`.

    Raises:
        InputError: ``k`` not positive.
    """
    if not (isinstance(k, int | float) and math.isfinite(k) and k > 0):
        raise InputError(f"k must be positive, got {k!r}")

    config = config.for_metric(None)

    def steps(layer: LayerSpec, weights: Tensor) -> LayerPlan:
        return layer_plan(layer, weights, [k * float(sigma(part)) for part in _parts(weights, config)], config)

    return make_plan("sigma", inputs, steps, config, Sigma(float(k)))


def step_by_price(inputs: PlanInputs, price: float, metric: str, config: QuantConfig | None = None) -> CompressionPlan:
    """Policy ``optimal``: the closed forms of `slimbit.numerics.allocate`, or widths per filter for ESN'_d.

    For other costs see `slimbit.plan.widths.widths_by_price`.

    Args:
        inputs: Layers, weights, and the sensitivity.
        price: Loss (nats) one is willing to pay per unit of the metric; cost falls when it grows.
        metric: "esn_analog", "esn_digital", "esn_filterwise", or what is counted as one of them: "mean_bits",
            "weight_bytes", and the machines "hardware:analog_class_b", "hardware:ideal_digital" and
            "hardware:filterwise".
        config: Grid, granularity, layers to skip, and how the plan will be carried out. ESN'_d always has one step
            per filter. Rate-aware rounding is aware of this price.

    Raises:
        InputError: Unknown metric, a price that is not positive, no sensitivity, or ESN'_d with ``midrise_zero``.
    """
    check_price(price, metric)
    form = allocation_of(metric)
    assert form != "table", "widths_by_price is for these"
    config = (config or QuantConfig()).for_metric(metric)
    sensitivity = inputs.checked_sensitivity()
    setting = Price(float(price), metric)
    if form == "filterwise":
        return make_plan("optimal", inputs, _filterwise_steps(inputs, price, metric, config), config, setting)

    def steps(layer: LayerSpec, weights: Tensor) -> LayerPlan:
        s = sensitivity.filters[layer.name] if config.granularity == "filter" else (sensitivity.layer(layer.name),)
        left = compensation_factor(inputs, layer, config)
        c = units_per_bit(inputs, layer, metric, config)
        parts = _parts(weights, config)
        chosen = [_priced_step(form, price, c, part, left * value) for part, value in zip(parts, s, strict=True)]
        plan = layer_plan(layer, weights, chosen, config, rate=_rates(config, price * c, s))
        plan = as_integers(plan, weights, config)
        return _prune_what_pays(plan, weights, form=form, charge=price * c, sensitivity=s)

    return make_plan("optimal", inputs, steps, config, setting)


def units_per_bit(inputs: PlanInputs, layer: LayerSpec, metric: str, config: QuantConfig) -> float:
    """Units of the metric that one bit of one weight of the layer costs."""
    if metric == "mean_bits":
        return 1.0 / sum(other.weights for other in inputs.spec.layers if not other.shared_with)
    if metric == "weight_bytes":
        return 1.0 / 8.0
    return inputs.positions(layer, config.per)


def compensation_factor(inputs: PlanInputs, layer: LayerSpec, config: QuantConfig) -> float:
    """Share of the layer's sensitivity that compensation will leave."""
    return inputs.compensation_factors.get(layer.name, 1.0) if config.compensation else 1.0


def _priced_step(form: Allocation, price: float, c: float, weights: Tensor, sensitivity: float) -> float:
    """The closed form; a weight that no image reaches (sensitivity 0) or that costs nothing gets a bound instead."""
    variance = float(weights.double().square().mean())
    if c == 0:  # looked up, not multiplied: a fine step, since it costs nothing
        return math.sqrt(variance) / 64
    widest = 8.0 * float(weights.abs().max())  # everything rounds to zero, or to the smallest level
    finest = widest / 2**16  # levels must fit into the 16 bits of the store
    if sensitivity <= 0:
        return widest
    if form == "analog":
        step = analog_step(price, positions=c, variance=variance, sensitivity=sensitivity)
    else:
        step = digital_step(price, positions=c, sensitivity=sensitivity)
    return max(finest, min(widest, step))


def _prune_what_pays(
    plan: LayerPlan, weights: Tensor, *, form: Allocation, charge: float, sensitivity: tuple[float, ...]
) -> LayerPlan:
    """On the grid without zero, drop filters whose levels cost more than they save (0 bits of water-filling)."""
    if plan.grid != "midrise":
        return plan
    step = weights.new_tensor(plan.steps).squeeze()
    levels = to_levels(weights, step, grid=plan.grid)
    s = weights.new_tensor(sensitivity).double()
    error = (weights - levels * along_filters(step, levels)).double().square().flatten(1).sum(1)
    cost = level_cost(levels, "esn_analog" if form == "analog" else "esn_digital").double().flatten(1).sum(1)
    stays = 0.5 * s * error + charge * cost < 0.5 * s * weights.double().square().flatten(1).sum(1)
    if bool(stays.all()):
        return plan
    return replace(plan, kept=tuple(stays.nonzero().reshape(-1).tolist()))


def _filterwise_steps(
    inputs: PlanInputs, price: float, metric: str, config: QuantConfig
) -> Callable[[LayerSpec, Tensor], LayerPlan]:
    sensitivity, grid = inputs.checked_sensitivity(), grid_of(config)

    def steps(layer: LayerSpec, weights: Tensor) -> LayerPlan:
        table = inputs.width_table(layer, grid)
        widths = best_widths(
            table,
            price,
            sensitivity=weights.new_tensor(sensitivity.filters[layer.name]),
            macs_per_filter=units_per_bit(inputs, layer, metric, config) * layer.weights / layer.filters,
            compensation_factor=compensation_factor(inputs, layer, config),
        )
        return as_integers(by_width(layer, table, widths.tolist(), config), weights, config)

    return steps


LARGEST_INTEGER = 63
"""Of weights beside quantized activations: two products with an unsigned byte stay within 16 bits, in which processors
without VNNI add them."""


def as_integers(plan: LayerPlan, weights: Tensor, config: QuantConfig) -> LayerPlan:
    """Steps wide enough for integers of at most `LARGEST_INTEGER` where activations are integers, too.

    A half-numbered level is twice as large as an integer.
    """
    if config.activation_bits is None:
        return plan
    largest = LARGEST_INTEGER if plan.grid == "midtread" else LARGEST_INTEGER / 2
    peaks = [float(weights.abs().max())] if len(plan.steps) == 1 else weights.flatten(1).abs().amax(1).tolist()
    steps = tuple(max(step, peak / largest) for step, peak in zip(plan.steps, peaks, strict=True))
    limits = tuple(min(limit, largest) for limit in plan.limits) or (largest,)
    return replace(plan, steps=steps, limits=limits)


STRETCH = 1.25
"""The step that fits the weights of a filter best balances rounding against clipping. Compensation repairs much of the
first and none of the second, so a wider step serves better: the divergence from a float ResNet-20 on training images
fell by a fifth at 97M and 75M bits (ESN'_d), about the same for 1.15 and 1.3."""


def by_width(layer: LayerSpec, table: WidthTable, widths: list[int], config: QuantConfig) -> LayerPlan:
    """The entry of a layer whose filters have these widths; 0 = dropped."""
    grid, stretch = grid_of(config), STRETCH if config.compensation else 1.0
    steps = tuple(stretch * float(table.step[f, b]) for f, b in enumerate(widths))
    limits = tuple(largest_level(max(b, 1), grid) for b in widths)
    kept = tuple(f for f, b in enumerate(widths) if b > 0)
    return LayerPlan(
        name=layer.name, steps=steps, grid=grid, limits=limits, kept=None if len(kept) == len(widths) else kept
    )


def _rates(config: QuantConfig, charge: float, sensitivity: tuple[float, ...]) -> tuple[float, ...]:
    """``1/2 s e^2 + price c phi`` is ``e^2 + rate phi`` with ``rate = 2 price c / s``."""
    if config.rounding == "nearest":
        return ()
    return tuple(2.0 * charge / s if s > 0 else 0.0 for s in sensitivity)


def _parts(weights: Tensor, config: QuantConfig) -> list[Tensor]:
    return list(weights.unbind()) if config.granularity == "filter" else [weights]


def layer_plan(
    layer: LayerSpec,
    weights: Tensor,
    steps: list[float],
    config: QuantConfig,
    *,
    limits: tuple[float, ...] = (),
    rate: tuple[float, ...] = (),
) -> LayerPlan:
    """A layer's entry. A step is 0 where all weights are zero: any does then.

    Filters that are all zero stay so on a grid without zero too: half a step of nothing, normalized, is noise.
    """
    safe = tuple(step if step > 0 else 1.0 for step in steps)
    grid = grid_of(config)
    kept = kept_filters(weights, grid)
    return LayerPlan(name=layer.name, steps=safe, grid=grid, limits=limits, rate=rate, kept=kept)


def kept_filters(values: Tensor, grid: Grid) -> tuple[int, ...] | None:
    """Filters that are not all zero, where the grid has no zero to say so; None: all stay.

    Args:
        values: Weights or levels, filters first.
        grid: Grid.
    """
    alive = values.flatten(1).any(1)
    return None if grid != "midrise" or bool(alive.all()) else tuple(alive.nonzero().reshape(-1).tolist())


def grid_of(config: QuantConfig) -> Grid:
    """The grid of settings that `QuantConfig.for_metric` has completed."""
    assert config.grid is not None, "for_metric comes first"
    return config.grid


def make_plan(
    policy: str,
    inputs: PlanInputs,
    steps: Callable[[LayerSpec, Tensor], LayerPlan],
    config: QuantConfig,
    setting: Setting,
) -> CompressionPlan:
    """The plan of a policy: ``steps`` gives the entry of each layer to quantize."""
    layers = tuple(steps(layer, inputs.weight(layer)) for layer in inputs.layers(config))
    return CompressionPlan(network=inputs.spec.name, policy=policy, layers=layers, setting=setting, config=config)


def check_price(price: float, metric: str) -> None:
    """Raise `InputError` for an unknown metric, one that no width changes, or a price that is not positive."""
    check_cost_name(metric, "metric")
    check_priceable(metric)
    if not (isinstance(price, int | float) and math.isfinite(price) and price > 0):
        raise InputError(f"price must be a positive number, got {price!r}")
