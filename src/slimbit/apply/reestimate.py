"""BatchNorm statistics of a pruned network, measured again."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.apply.calibration import Calibration, batchnorms, calibrate
from slimbit.apply.layerwise import LayerwisePass
from slimbit.numerics.batches import Forward, call_network
from slimbit.numerics.copies import copied, plain_network
from slimbit.numerics.moments import ChannelMoments
from slimbit.records.config import QuantConfig, Statistics
from slimbit.records.errors import InputError
from slimbit.records.keep import KeepPlan
from slimbit.records.network import NetworkSpec
from slimbit.records.plan import CompressionPlan


def reestimate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    original: nn.Module | None = None,
    plan: KeepPlan | None = None,
    forward: Forward = call_network,
) -> nn.Module:
    """A copy of a pruned (or masked) network whose BatchNorm statistics fit what it computes now.

    Without ``original``: ``absolute``, mean and variance of each BatchNorm's input over the images, in order, each
    behind those that are new already. With it: ``paired``, the original's stored statistics moved by what pruning
    changed on the same images, ``mean' = mean + (mean_q - mean_f) sqrt(var / var_f)`` and
    ``var' = var var_q / var_f``; the better form where images are not augmented as in training.

    Args:
        model: The pruned network; not changed.
        batches: Unlabelled images.
        original: The network before pruning.
        plan: What was pruned; needed with ``original`` unless both have the same sizes.
        forward: How to call a network on a batch.

    Raises:
        InputError: No images, values that are not finite, or an original that the plan does not lead from.
    """
    network = copied(model).eval()
    nothing = NetworkSpec(type(model).__name__, ())
    form: Statistics = "absolute" if original is None else "paired"
    if original is None:
        found = calibrate(network, nothing, batches, forward=forward)
    else:
        source = plain_network(original)
        found = _kept(calibrate(source, nothing, batches, forward=forward), network, plan)
        _restore(network, source, plan)
    config = QuantConfig(compensation=False, statistics=form)
    plan_of_none = CompressionPlan(network=nothing.name, policy="none", layers=(), config=config)
    LayerwisePass(network, plan_of_none, {}, found).correct()
    return network


def _kept(found: Calibration, network: nn.Module, plan: KeepPlan | None) -> Calibration:
    """The original's moments of the channels that are left."""
    moments = {}
    for name, module in batchnorms(network).items():
        if name in found.batchnorms:
            m = found.batchnorms[name]
            mean, variance = (_left(x, name, module.num_features, plan) for x in (m.mean, m.variance))
            moments[name] = ChannelMoments(mean, variance, m.count)
    events = [(kind, name) for kind, name in found.events if name in moments]
    return replace(found, batchnorms=moments, events=events)


def _restore(network: nn.Module, source: nn.Module, plan: KeepPlan | None) -> None:
    """The original's stored statistics: folding has moved some, and what it took from the inputs is measured too."""
    stored = batchnorms(source)
    with torch.no_grad():
        for name, module in batchnorms(network).items():
            for key in ("running_mean", "running_var"):
                getattr(module, key).copy_(_left(getattr(stored[name], key), name, module.num_features, plan))


def _left(values: Tensor, name: str, size: int, plan: KeepPlan | None) -> Tensor:
    axis = None if plan is None else plan.axis(name, "norm")
    if axis is not None and len(values) == axis.size and size == len(axis.kept):
        return values[torch.tensor(axis.kept, device=values.device)]
    if len(values) != size:
        raise InputError(f"channels of {name!r} must be {size} of the original's by the plan, got {len(values)}")
    return values
