"""Quantize one network: equal bits, a price, or the best steps for a budget."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from slimbit.apply.compress import compress
from slimbit.compress.model import CompressedModel
from slimbit.compress.prepared import PreparedNetwork, prepare
from slimbit.compress.widths import predicted_loss
from slimbit.measure.named_cost import CostLike, NamedCost, load_amounts, load_cost
from slimbit.records.config import PAPER, QuantConfig, check_config, check_positive
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError
from slimbit.records.plan import CompressionPlan
from slimbit.records.signal import EpochSignal
from slimbit.survey.trace import Inputs

ROUNDS = 6
"""Compressions until the exact cost is within a budget; the first guess is a few percent off."""
STEPS = 60
CHEAPEST, DEAREST = 1e-24, 1e12
"""Prices between which every useful one lies, in nats per unit of any metric."""


def quantize(
    model: "nn.Module | PreparedNetwork | CompressedModel",
    example_input: Inputs | None = None,
    calibration: Iterable[Any] | Tensor | None = None,
    *,
    bits: float | None = None,
    price: float | None = None,
    budget: Mapping[CostLike, float] | None = None,
    signal: EpochSignal | None = None,
    metric: CostLike | None = None,
    config: QuantConfig | None = None,
    seed: int = 0,
) -> CompressedModel:
    """Quantize the weights of a network; without labels, without training.

    Exactly one of ``bits``, ``price``, ``budget`` and ``signal`` says how far:

    * ``bits=b``: ``step = max|W| / 2^(b-1)`` in every layer, levels clipped to b bits.
    * ``price=p``: steps, or widths, that minimize predicted loss + ``p`` x cost (see docs/glossary.md).
    * ``budget={"esn_digital": 20e6}``: the smallest price whose network costs at most that, in every cost named.
    * ``signal=epoch``: levels that cost, layer by layer, what the signal-to-noise ratio of a training epoch was worth
      (Prune or quantize? (2019), Appendix B); carried out as plainly as the paper does unless ``config`` says more.

    Args:
        model: The trained network; or what `slimbit.prepare`, `slimbit.prune` or an earlier call returned. Not changed.
        example_input: One example with its batch dimension; not for a prepared network.
        calibration: Some hundred unlabelled images: a tensor, or batches; not for a prepared network.
        bits: Bit width, 1 to 16; may be fractional.
        price: Loss (nats) one is willing to pay per unit of ``metric``.
        budget: Largest cost per image, by cost: a metric of the cost report or a machine, as for ``metric``.
        signal: Record of a training epoch of this network, from `slimbit.SignalTracker`.
        metric: Cost that steps and widths are optimal for; default: those of the budget, else "esn_digital". Any metric
            of the cost report that widths change, or a machine: ``hardware:NAME``, a ``.toml`` file,
            ``package.module:function``, a `slimbit.HardwareModel` or a function.
        config: Grid, compensation, statistics and so on.
        seed: Of sampled labels and positions; not for a prepared network.

    Raises:
        InputError: None or several of the four, a budget that no network fits, or what `slimbit.prepare` refuses.

    >>> import slimbit, torch
    >>> net, images = slimbit.network("digits_resnet"), torch.randn(32, 1, 8, 8)
    >>> small = slimbit.quantize(net, images[:1], images, budget={"esn_digital": 200e3})
    >>> small.cost.total.esn_digital <= 200e3, small.plan.policy
    (True, 'optimal')
    """
    check_config(config, QuantConfig)
    ways = {"bits": bits, "price": price, "budget": budget, "signal": signal}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"one of {', '.join(ways)} must be given, got {' and '.join(given) or 'none'}")
    cost = None if metric is None else load_cost(metric)
    if cost is not None:
        cost.check_priceable()
    prepared = as_prepared(model, example_input, calibration, seed=seed)
    if signal is not None:
        return quantized(prepared, prepared.plan_signal(signal, config or PAPER))
    config = config or QuantConfig()
    if bits is not None:
        return quantized(prepared, prepared.plan_bits(bits, config))
    if price is not None:
        check_positive("price", price)
        return quantized(prepared, prepared.plan_at(price, cost or "esn_digital", config))
    return _within_budget(prepared, _checked_budget(budget), cost, config)


def as_prepared(
    model: "nn.Module | PreparedNetwork | CompressedModel",
    example_input: Inputs | None,
    calibration: Iterable[Any] | Tensor | None,
    **settings: Any,
) -> PreparedNetwork:
    """A prepared network of whatever the public functions take.

    Args:
        model: As in `quantize`.
        example_input: Likewise.
        calibration: Likewise.
        settings: Others of `slimbit.prepare`; not used for a prepared network.

    Raises:
        InputError: No example where one is needed, or one beside a prepared network.
    """
    if isinstance(model, PreparedNetwork):
        if example_input is not None or calibration is not None:
            raise InputError("example_input and calibration must not be given for a prepared network, which has them")
        return model
    network = model.model if isinstance(model, CompressedModel) else model
    if not isinstance(network, nn.Module):
        raise InputError(
            f"model must be a torch.nn.Module, a prepared or a compressed network, got {type(model).__name__}"
        )
    if example_input is None:
        raise InputError("example_input must be given, e.g. torch.zeros(1, 3, 32, 32), got none")
    if not isinstance(example_input, Tensor | tuple | Mapping):
        raise InputError(
            f"example_input must be one example (a tensor, a tuple or a dict), got {type(example_input).__name__}: "
            "calibration batches come third"
        )
    if isinstance(model, CompressedModel):
        name, origin, keep = model.spec.name, model.origin, model.keep
        return prepare(network, example_input, calibration, name=name, origin=origin, keep=keep, **settings)
    return prepare(network, example_input, calibration, **settings)


def quantized(prepared: PreparedNetwork, plan: CompressionPlan) -> CompressedModel:
    """Carry a plan out."""
    needs = plan.config.needs_images
    calibration, flow = prepared.calibration if needs else None, prepared.flow if plan.activations else None
    result = compress(prepared.model, plan, prepared.spec, calibration, flow=flow)
    cost = prepared.cost(plan, result.layers)
    notes = () if result.refinement is None else (str(result.refinement),)
    return CompressedModel(
        model=result.model,
        network=result.network,
        program=result.program,
        cost=replace(cost, notes=(*cost.notes, *prepared.calibration_notes, *notes)) if needs else cost,
        spec=prepared.spec,
        plan=plan,
        layers=result.layers,
        keep=prepared.keep,
        origin=prepared.origin,
    )


def _checked_budget(budget: Mapping[CostLike, float] | None) -> dict[NamedCost, float]:
    if not isinstance(budget, Mapping) or not budget:
        raise InputError(f"budget must map costs to amounts, like {{'esn_digital': 20e6}}, got {budget!r}")
    found = load_amounts(budget)
    for cost, amount in found.items():
        check_positive(f"budget of {cost.name}", amount)
    return found


def _within_budget(
    prepared: PreparedNetwork, budget: dict[NamedCost, float], metric: NamedCost | None, config: QuantConfig
) -> CompressedModel:
    """The smallest price that fits; of the costs that a price may be for, the one with the least predicted loss."""
    priced = [cost for cost in budget if cost.is_priceable]
    metrics = [metric] if metric else priced or [load_cost("esn_digital")]
    aims, result = dict(budget), None
    for _ in range(ROUNDS):
        plans = [_plan_within(prepared, aims, cost, config) for cost in metrics]
        plan = min(plans, key=lambda plan: predicted_loss(prepared, plan)) if len(plans) > 1 else plans[0]
        result = quantized(prepared, plan)
        over = {cost: _amount(result.cost, cost) / amount for cost, amount in budget.items()}
        if max(over.values()) <= 1:
            return result
        # the prediction rounds plainly: aim lower by what it was off
        aims = {cost: aims[cost] / max(1.0, over[cost]) * 0.998 for cost in aims}
    assert result is not None
    found = ", ".join(f"{cost.name} {_amount(result.cost, cost):g}" for cost in budget)
    raise InputError(f"budget must be one that a network fits, got {_shown(budget)}: the nearest found costs {found}")


def _shown(budget: Mapping[NamedCost, float]) -> dict[str, float]:
    return {cost.name: amount for cost, amount in budget.items()}


def _plan_within(
    prepared: PreparedNetwork, budget: dict[NamedCost, float], metric: NamedCost, config: QuantConfig
) -> CompressionPlan:
    """The plan of the smallest price whose predicted costs are within the budget, by bisection in log price."""

    def fits(price: float) -> CompressionPlan | None:
        plan = prepared.plan_at(price, metric, config)
        report = prepared.predicted(plan)
        return plan if all(_amount(report, cost) <= amount for cost, amount in budget.items()) else None

    low, high = CHEAPEST, DEAREST
    best = fits(high)
    if best is None:
        report = prepared.predicted(prepared.plan_at(high, metric, config))
        least = ", ".join(f"{cost.name} {_amount(report, cost):g}" for cost in budget)
        raise InputError(f"budget must be one that a network fits, got {_shown(budget)}: the least is {least}")
    for _ in range(STEPS):
        if high / low < 1.001:
            break
        middle = math.sqrt(low * high)
        found = fits(middle)
        low, high, best = (low, middle, found) if found is not None else (middle, high, best)
    return best


def _amount(report: CostReport, cost: NamedCost) -> float:
    value = cost.total(report)
    if value is None:
        raise InputError(f"{cost.name} of {report.network} must exist to be a budget, got none: a layer stays float")
    return float(value)
