"""What a network will cost once a keep plan is carried out, before anything is cut."""

from collections.abc import Callable

import torch
from torch import Tensor

from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.measure.named_cost import CostLike, NamedCost, load_cost
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError
from slimbit.records.keep import KeepPlan
from slimbit.records.network import LayerSpec
from slimbit.survey.result import Survey


def cost_of_plan(survey: Survey, plan: KeepPlan, counting: CostConfig | None = None) -> CostReport:
    """The cost report of the pruned network: removed filters and the inputs that read them cost nothing.

    Layers keep their old shapes in it, and parameters are those of the original.

    Args:
        survey: Of the network before pruning.
        plan: What stays.
        counting: How to count; default: weights as they are.
    """

    def keep(layer: LayerSpec) -> Tensor | None:
        left, weight = weights_left(layer, plan), survey.weight(layer)
        return left.to(weight.device) if left is not None and isinstance(weight, Tensor) else left

    return cost_of_survey(survey, counting or CostConfig(), keep=keep)


def weights_left(layer: LayerSpec, plan: KeepPlan) -> Tensor | None:
    """Which weights of a layer stay, filters first; None where all do."""
    path = layer.weight_key.removesuffix(".weight")
    filters = plan.axis(path, "filters")
    inputs = plan.axis(path, "inputs") if layer.groups == 1 else None
    if filters is None and inputs is None:
        return None
    left = torch.ones(layer.shape, dtype=torch.bool)
    if filters is not None:
        left[list(filters.removed)] = False
    if inputs is not None:
        left[:, list(inputs.removed)] = False
    return left


def budget_in(
    survey: Survey, metric: CostLike | NamedCost, counting: CostConfig | None = None
) -> Callable[[KeepPlan], float]:
    """A function from a plan to one cost of what it leaves, for `slimbit.plan.keep.keep_within`.

    Args:
        survey: Of the network before pruning.
        metric: A metric of the cost report, or a machine, as in `slimbit.measure.named_cost.load_cost`.
        counting: How to count; ESN metrics need ``bits``.

    Raises:
        InputError: A cost that does not exist, or that these weights do not have.
    """
    named = load_cost(metric)
    if not named.is_priceable:
        raise InputError(f"metric must be one that a keep plan counts, as weight_bytes or macs, got {named.name!r}")

    def cost(plan: KeepPlan) -> float:
        value = named.total(cost_of_plan(survey, plan, counting))
        if value is None:
            raise InputError(f"{named.name} must be counted at a bit width, got float weights")
        return float(value)

    return cost
