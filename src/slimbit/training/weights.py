"""The weights that a tracker follows: how to read each one while the network trains, and which layers it belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from slimbit.numerics.grid import filters_first
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec
from slimbit.training.sharding import is_sharded


@dataclass(frozen=True)
class TrackedWeight:
    """One stored tensor.

    Attributes:
        key: Its state-dict key.
        layers: Whose weight it is: several where it is shared, or holds query, key and value.
        owner: The module that holds it.
    """

    key: str
    layers: tuple[LayerSpec, ...]
    owner: nn.Module

    @property
    def depth(self) -> int:
        """How many leading dimensions tell filters apart: transposed convolutions store inputs first."""
        return 2 if any(layer.transposed for layer in self.layers) else 1

    @property
    def trainable(self) -> bool:
        """Whether anything of it is not frozen."""
        return any(parameter.requires_grad for parameter in self._parameters())

    def read(self) -> Tensor:
        """Its value now; of a parametrized weight the value that the network computes with.

        Raises:
            InputError: It is neither a parameter nor computed from some in a way that can be followed.
        """
        owner, attribute = self.owner, self._attribute
        parameter = owner._parameters.get(attribute)
        if parameter is not None:
            return parameter
        value = _parametrized(owner, attribute) if self._is_parametrized() else _hooked(owner, attribute)
        if value is None:
            raise InputError(
                f"weight {self.key} must be a parameter, or computed from parameters by torch.nn.utils.parametrize, "
                f"weight_norm, spectral_norm or prune, got a tensor that {type(owner).__name__} keeps itself"
            )
        if is_sharded(value):
            raise InputError(f"weight {self.key} must be a parameter where the network is sharded, got a computed one")
        return value

    def of_filters(self, values: Tensor, layer: LayerSpec) -> Tensor:
        """Values per segment of this weight (first ``depth`` dimensions), added up to one per filter of a layer.

        Args:
            values: Shape ``(*segments)``.
            layer: One of ``layers``.
        """
        if layer.rows is not None:
            values = values[slice(*layer.rows)]
        matrix = values.reshape(len(values), -1)
        return filters_first(matrix, transposed=layer.transposed, groups=layer.groups).sum(1)

    @property
    def _attribute(self) -> str:
        return self.key.rpartition(".")[2]

    def _is_parametrized(self) -> bool:
        return parametrize.is_parametrized(self.owner, self._attribute)

    def _parameters(self) -> list[nn.Parameter]:
        """The parameter itself, or those that it is computed from."""
        if self._is_parametrized():
            return list(_table(self.owner, self._attribute).parameters())
        names = {self._attribute, *(f"{self._attribute}_{end}" for end in ("g", "v", "orig"))}
        return [p for name, p in self.owner._parameters.items() if name in names and p is not None]


def tracked_weights(network: nn.Module, layers: Sequence[LayerSpec]) -> tuple[TrackedWeight, ...]:
    """The stored tensors behind the layers, each once."""
    keys = {layer.name: layer.weight_key for layer in layers}
    members: dict[str, list[LayerSpec]] = {}
    for layer in layers:
        members.setdefault(keys[layer.shared_with or layer.name], []).append(layer)
    return tuple(
        TrackedWeight(key, tuple(found), network.get_submodule(key.rpartition(".")[0]))
        for key, found in members.items()
    )  # fmt: skip


def _parametrized(owner: nn.Module, attribute: str) -> Tensor:
    """The value, computed as in evaluation: in training mode spectral norm would go on iterating."""
    table = _table(owner, attribute)
    training = [module for module in table.modules() if module.training]
    try:
        for module in training:
            module.training = False
        value: Tensor = table()
    finally:
        for module in training:
            module.training = True
    return value


def _table(owner: nn.Module, attribute: str) -> nn.Module:
    tables: Any = owner.parametrizations
    table: nn.Module = tables[attribute]
    return table


def _hooked(owner: nn.Module, attribute: str) -> Tensor | None:
    """The value that a hook computes before each forward pass; what the module itself holds is stale after a step."""
    for hook in owner._forward_pre_hooks.values():
        value: Any = None
        if isinstance(hook, WeightNorm) and hook.name == attribute:
            value = hook.compute_weight(owner)
        elif isinstance(hook, SpectralNorm) and hook.name == attribute:
            value = hook.compute_weight(owner, do_power_iteration=False)
        elif isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == attribute:
            value = hook.apply_mask(owner)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if isinstance(value, Tensor):
            return value
    return None
