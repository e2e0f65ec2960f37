"""A keep plan as masks: the network keeps its size, and what is removed is zero."""

import torch
from torch import Tensor, nn

from slimbit.apply.axes import bind_axes
from slimbit.apply.constants import fold_constants
from slimbit.numerics.copies import mask_of, plain_network
from slimbit.records.errors import InputError
from slimbit.records.keep import KeepPlan
from slimbit.survey.trace import Inputs


def mask(model: nn.Module, plan: KeepPlan, example_input: Inputs | None = None) -> nn.Module:
    """A copy of the network in which everything that the plan removes is zero.

    Weights, bias and scales of removed filters, and the weights with which later layers read them. Outputs and costs
    are those of `slimbit.apply.surgery.prune` with the same plan: which weights are pruned is kept as a bool buffer
    ``weight_mask`` beside each weight, outside of the state dict, since a zero alone is a weight like any other.

    Args:
        model: Not changed. Parametrizations are replaced by the weights that they compute.
        plan: What stays.
        example_input: One example with its batch dimension; needed where the plan folds constants.

    Returns:
        A new network in evaluation mode; `held_masks` tells which of its weights a trainer must hold at zero.

    Raises:
        InputError: A plan for another network, or no example for a plan that folds constants.

    >>> from slimbit.records.keep import AxisKeep
    >>> filters = AxisKeep(name="0", role="filters", size=2, kept=(1,))
    >>> inputs = AxisKeep(name="1", role="inputs", size=2, kept=(1,))
    >>> plan = KeepPlan(network="n", policy="mine", axes=(filters, inputs), constants="zero")
    >>> net = mask(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), plan)
    >>> (net[0].weight != 0).sum(1).tolist(), net[1].weight_mask.tolist()
    ([0, 3], [[False, True]])
    """
    return zeroed(prepared(model, plan, example_input), plan)


def zeroed(network: nn.Module, plan: KeepPlan) -> nn.Module:
    """Zero in place what the plan removes, and mask the weights among it; returns the network."""
    axes = bind_axes(network, plan)
    for axis in axes:
        weight = axis.module.weight if axis.keep.role in ("filters", "inputs") else None
        if isinstance(weight, Tensor) and mask_of(axis.module, "weight") is None:
            everything = torch.ones_like(weight, dtype=torch.bool, requires_grad=False)
            axis.module.register_buffer("weight_mask", everything, persistent=False)
    with torch.no_grad():
        for axis in axes:
            for name, value, entries in axis.removed():
                if not name.startswith("running_"):
                    value.masked_fill_(entries, 0)
    return network


def held_masks(plan: KeepPlan, model: nn.Module) -> dict[str, Tensor]:
    """Which entries of which parameters stay: True stays, False must be held at zero.

    Args:
        plan: What stays.
        model: The network, or a masked copy of it; its weights are plain parameters.

    Returns:
        A bool tensor of the parameter's shape by name, for every parameter that loses something.

    Raises:
        InputError: A plan for another network.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    masks: dict[str, Tensor] = {}
    for axis in bind_axes(model, plan):
        for name, value, entries in axis.removed():
            if isinstance(value, nn.Parameter):
                key = f"{paths[id(axis.module)]}.{name}".removeprefix(".")
                held = masks.setdefault(key, torch.ones(value.shape, dtype=torch.bool, device=value.device))
                held &= ~entries
    return masks


def prepared(model: nn.Module, plan: KeepPlan, example_input: Inputs | None) -> nn.Module:
    """A plain copy of the network that fits the plan, with constants folded if the plan says so."""
    network = plain_network(model)
    bind_axes(network, plan)
    if plan.constants == "fold" and plan.axes:
        if example_input is None:
            raise InputError("example input must be given for a plan that folds constants, got none")
        fold_constants(network, plan, example_input)
    return network
