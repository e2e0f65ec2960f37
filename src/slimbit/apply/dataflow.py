"""A `Dataflow` run on a network's own modules, in floats, with an eye on every value."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.numerics.operations import function_of, largest, moved, multiply_weights, per_channel, window_sums
from slimbit.records.dataflow import Dataflow, Operation
from slimbit.records.errors import InputError

Watch = Callable[[str, Tensor], Tensor]
"""Sees every value by name and returns it, or another in its place."""


class FlowForward:
    """A forward method that follows a dataflow: put on a copy of a network, whose modules and hooks go on working."""

    def __init__(self, network: nn.Module, flow: Dataflow, watch: Watch) -> None:
        self._network, self._flow, self._watch = network, flow, watch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs in the form in which the network returns them."""
        return run_dataflow(self._network, self._flow, named_inputs(self._flow, args, kwargs), self._watch)


def named_inputs(flow: Dataflow, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Inputs of a network by name.

    Raises:
        InputError: Too many, too few, or of another shape.
    """
    given = {**dict(zip(flow.inputs, args, strict=False)), **kwargs}
    if len(args) > len(flow.inputs) or {*given} != {*flow.inputs}:
        raise InputError(f"inputs of {flow.network} must be {', '.join(flow.inputs)}, got {len(args) + len(kwargs)}")
    for name, shape in flow.inputs.items():
        if tuple(given[name].shape[1:]) != tuple(shape):
            raise InputError(
                f"input {name!r} must have the shape {tuple(shape)} per image, got {tuple(given[name].shape)}"
            )
    return given


def run_dataflow(network: nn.Module, flow: Dataflow, inputs: Mapping[str, Tensor], watch: Watch) -> Any:
    """The network's outputs, computed operation by operation.

    Args:
        network: Its modules and tensors; layers and BatchNorms run as modules, so that hooks see them.
        flow: What it computes.
        inputs: By name.
        watch: Sees every value and may replace it.
    """
    values = {name: watch(name, value) for name, value in inputs.items()}
    left = {value: len(flow.readers(value)) for value in (*flow.inputs, *(operation.name for operation in flow))}
    for operation in flow:
        values[operation.name] = watch(
            operation.name, _computed(network, operation, [values[x] for x in operation.inputs])
        )
        for value in dict.fromkeys(operation.inputs):
            left[value] -= 1
            if not left[value] and value not in flow.outputs:
                del values[value]
    return flow.structured(tuple(values[name] for name in flow.outputs))


def _computed(network: nn.Module, operation: Operation, inputs: list[Tensor]) -> Tensor:  # noqa: C901, PLR0911 - one per kind
    first = inputs[0]
    match operation.kind:
        case "layer" | "norm" if operation.module:
            result: Tensor = network.get_submodule(operation.module)(first)
            return result
        case "layer":
            result = multiply_weights(first, tensor_at(network, operation["weight"]), operation)
            if operation["bias"]:
                bias = tensor_at(network, operation["bias"])
                result = result + (bias if operation["form"] == "linear" else per_channel(bias, result.ndim))
            return result
        case "norm":
            scale, shift = (per_channel(x, first.ndim).to(first) for x in scale_and_shift(network, operation))
            return first * scale + shift
        case "add":
            return inputs[0] + inputs[1]
        case "multiply":
            return inputs[0] * inputs[1]
        case "concat":
            return torch.cat(inputs, dim=operation["axis"])
        case "average":
            return window_sums(first, operation) / int(math.prod(operation["kernel"]))
        case "maximum":
            return largest(first, operation)
        case "function":
            return function_of(first, operation)
        case "move":
            return moved(first, operation)


def tensor_at(network: nn.Module, key: str) -> Tensor:
    """A parameter or buffer by its state-dict key."""
    path, _, name = key.rpartition(".")
    tensor: Tensor = getattr(network.get_submodule(path), name)
    return tensor


def scale_and_shift(network: nn.Module, norm: Operation) -> tuple[Tensor, Tensor]:
    """A norm as ``scale * x + shift``, float64, one number per channel or one for all."""
    if "scale" in norm.settings:
        scale, shift = torch.tensor(norm["scale"]).double(), torch.tensor(norm["shift"]).double()
        return scale, shift
    mean, variance = (tensor_at(network, norm[key]).detach().double() for key in ("mean", "variance"))
    scale = (variance + norm["eps"]).rsqrt()
    if norm["weight"]:
        scale = scale * tensor_at(network, norm["weight"]).detach().double()
    shift = -mean * scale
    if norm["bias"]:
        shift = shift + tensor_at(network, norm["bias"]).detach().double()
    return scale, shift
