"""Levels as the weights of a network, and a network's weights without its levels."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from slimbit.numerics.copies import plain_network
from slimbit.numerics.grid import filters_stored, layer_weight, to_weights
from slimbit.records.errors import InputError, closest
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.records.plan import PlanGrid


@dataclass(frozen=True)
class LayerLevels:
    """One quantized layer.

    Attributes:
        levels: Filters first, whole or half numbers.
        steps: Positive; scalar, or shape ``(filters,)``.
        grid: What the levels lie on.
    """

    levels: Tensor
    steps: Tensor
    grid: PlanGrid

    def weights(self) -> Tensor:
        """``step * levels`` in the type of the steps."""
        return to_weights(self.levels.to(self.steps.dtype), self.steps)


def with_levels(
    model: nn.Module, spec: NetworkSpec, levels: Mapping[str, LayerLevels], *, state: Mapping[str, Tensor]
) -> nn.Module:
    """The compressed network: a copy of the float one, in evaluation mode, with other weights.

    Args:
        model: The float network; it is not changed.
        spec: Its survey.
        levels: By layer name.
        state: Every other entry of the state dict that compression changed.

    Raises:
        InputError: A layer, an entry or a shape that the network does not have.

    >>> import torch
    >>> spec = NetworkSpec("n", (LayerSpec(name="fc", kind="linear", weight_key="weight", shape=(1, 2)),))
    >>> levels = {"fc": LayerLevels(torch.tensor([[0.5, -1.5]]), torch.tensor(2.0), "midrise")}
    >>> with_levels(nn.Linear(2, 1), spec, levels, state={"bias": torch.zeros(1)})(torch.ones(1, 2)).tolist()
    [[-2.0]]
    """
    network = plain_network(model)
    tensors = tensors_of(network)
    for key, value in state.items():
        _check_entry(key, value, tensors)
    changed = {**tensors, **{key: value.to(tensors[key].dtype) for key, value in state.items()}}
    for name, layer in levels.items():
        place(changed, layer_of(spec, name), layer.weights())
    network.load_state_dict(changed)
    return network


def layer_of(spec: NetworkSpec, name: str) -> LayerSpec:
    """The layer of that name.

    Raises:
        InputError: There is none.
    """
    try:
        return spec.layer(name)
    except KeyError:
        names = [layer.name for layer in spec.layers]
        raise InputError(f"levels must be for layers of {spec.name}, got {name!r}{closest(name, names)}") from None


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, detached.

    Raises:
        InputError: It holds more than tensors.
    """
    state = model.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"state of the network must be tensors, got {type(value).__name__} at {key!r}")
    return {key: value.detach() for key, value in state.items()}


def place(tensors: dict[str, Tensor], layer: LayerSpec, weights: Tensor) -> None:
    """Put a layer's weights, filters first, where the network keeps them; the tensor that was there stays as it was.

    Raises:
        InputError: No such entry, or another shape.
    """
    rows = rows_of(tensors, layer)
    stored = filters_stored(weights, transposed=layer.transposed, groups=layer.groups)
    new = tensors[layer.weight_key].clone()
    if new[rows].shape != stored.shape:
        raise InputError(f"levels of layer {layer.name!r} must be {tuple(new[rows].shape)}, got {tuple(stored.shape)}")
    new[rows] = stored.to(new)
    tensors[layer.weight_key] = new


def taken(tensors: Mapping[str, Tensor], layer: LayerSpec) -> Tensor:
    """The layer's weights, filters first, as the network keeps them now."""
    rows_of(tensors, layer)
    return layer_weight(tensors[layer.weight_key], layer)


def rows_of(tensors: Mapping[str, Tensor], layer: LayerSpec) -> slice:
    """Rows of the stored tensor that belong to the layer.

    Raises:
        InputError: The network has no such tensor or rows, or it is no weight.
    """
    tensor = tensors.get(layer.weight_key)
    if tensor is None or tensor.ndim == 0 or not tensor.is_floating_point():
        raise InputError(f"network must have the weight {layer.weight_key!r} of layer {layer.name!r}, got none")
    if layer.transposed and (tensor.ndim < 2 or len(tensor) % layer.groups):
        raise InputError(f"groups of layer {layer.name!r} must divide {tuple(tensor.shape)}, got {layer.groups}")
    if layer.rows is None:
        return slice(None)
    first, last = layer.rows
    if not 0 <= first < last <= len(tensor):
        raise InputError(f"rows of layer {layer.name!r} must be within {len(tensor)}, got {first} to {last}")
    return slice(first, last)


def _check_entry(key: str, value: Tensor, tensors: Mapping[str, Tensor]) -> None:
    if key not in tensors:
        raise InputError(f"changed state must be of the network, got {key!r}{closest(key, list(tensors))}")
    if tensors[key].shape != value.shape:
        raise InputError(f"state {key!r} must be {tuple(tensors[key].shape)}, got {tuple(value.shape)}")
