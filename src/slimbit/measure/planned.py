"""What a network will cost once a keep plan is carried out, before anything is cut."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.records.cost import METRICS, CostReport
from slimbit.records.errors import InputError, closest
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


def budget_in(survey: Survey, metric: str, counting: CostConfig | None = None) -> Callable[[KeepPlan], float]:
    """A function from a plan to one metric of its cost, for `slimbit.plan.keep.keep_within`.

    Args:
        survey: Of the network before pruning.
        metric: One of `slimbit.records.cost.METRICS`.
        counting: How to count; ESN metrics need ``bits``.

    Raises:
        InputError: A metric that does not exist, or that these weights do not have.
    """
    known = [name for name in METRICS if name != "parameters"]
    if metric not in known:
        raise InputError(f"metric must be one of {', '.join(known)}, got {metric!r}{closest(metric, known)}")

    def cost(plan: KeepPlan) -> float:
        total: Mapping[str, float | None] = cost_of_plan(survey, plan, counting).to_dict()["total"]
        value = total.get(metric)
        if value is None:
            raise InputError(f"{metric} must be counted at a bit width, got float weights")
        return float(value)

    return cost
