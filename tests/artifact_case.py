"""Compressed networks with levels of one's own, as an artifact wants them."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.artifacts.manifest import AccuracyEntry
from slimbit.artifacts.packed import place, tensors_of
from slimbit.compress.model import CompressedModel
from slimbit.measure.cost import cost
from slimbit.numerics.levels import LayerLevels
from slimbit.records.network import NetworkSpec
from slimbit.records.origin import NetworkOrigin, Normalization
from slimbit.records.plan import CompressionPlan


def with_levels(
    model: nn.Module, spec: NetworkSpec, levels: Mapping[str, LayerLevels], *, state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """A copy whose weights are ``step * levels``, with other entries of its state dict put over."""
    small = copy.deepcopy(model)
    tensors = tensors_of(small)
    for name, layer in levels.items():
        place(tensors, spec.layer(name), layer.weights())
    small.load_state_dict(tensors | dict(state or {}))
    return small


def small_model(
    model: nn.Module,
    spec: NetworkSpec,
    levels: Mapping[str, LayerLevels],
    *,
    source: str,
    shape: tuple[int, ...],
    plan: CompressionPlan | None = None,
    **more: Any,
) -> CompressedModel:
    """A quantized model; its cost is that of one weight at 2 x 2 positions."""
    convolution = nn.Conv2d(1, 1, 1)
    nn.init.ones_(convolution.weight)
    return CompressedModel(
        model=model,
        network=model,
        cost=cost(convolution, torch.zeros(1, 1, 2, 2), bits=2),
        spec=spec,
        plan=plan or CompressionPlan(network="net", policy="mine", layers=()),
        layers=levels,
        origin=NetworkOrigin(source=source, input_shape=shape, normalization=Normalization((0.5,), (0.25,))),
        accuracy=AccuracyEntry(value=91.25, low=90.0, high=92.5, uncompressed=92, measured_on="cifar10, 2000 images"),
        provenance={"seed": 0, "versions": {"slimbit": "0.1.0"}},
        **more,
    )
