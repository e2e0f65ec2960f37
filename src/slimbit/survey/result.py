"""What every survey returns: the network's description and a way to read its weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from slimbit.numerics.levels import LayerLevels
from slimbit.records.network import LayerSpec, NetworkSpec


@dataclass(frozen=True)
class Survey:
    """A surveyed network.

    Attributes:
        spec: Layers, positions, and what no layer explains.
        weight: Reads the weight of a layer, filters first; called when needed, so nothing is held twice.
        activation_bits: Declared width of a layer's input by layer name, where a file says so.
    """

    spec: NetworkSpec
    weight: Callable[[LayerSpec], Tensor | LayerLevels]
    activation_bits: Mapping[str, int] = field(default_factory=dict)
