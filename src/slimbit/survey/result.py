"""What every survey returns: the network's description and a way to read its weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from slimbit.numerics.grid import Grid
from slimbit.records.network import LayerSpec, NetworkSpec


@dataclass(frozen=True)
class StoredLevels:
    """Weights that are integers already.

    Attributes:
        levels: Filters first, on ``grid``.
        step: Scalar, or one per filter.
        grid: Grid of the levels.
        bits: Declared width, which no level exceeds; 0 = none, then it is what the levels need.
        signal_to_noise: ``||W||^2 / ||W - step * levels||^2`` where the weights behind the levels are known.
        zeros_are_pruned: Whether filters, and inputs that no filter reads, are gone where all their levels are 0.
    """

    levels: Tensor
    step: Tensor
    grid: Grid
    bits: int = 0
    signal_to_noise: float | None = None
    zeros_are_pruned: bool = False


@dataclass(frozen=True)
class Survey:
    """A surveyed network.

    Attributes:
        spec: Layers, positions, and what no layer explains.
        weight: Reads the weight of a layer, filters first; called when needed, so nothing is held twice.
        activation_bits: Declared width of a layer's input by layer name, where a file says so.
    """

    spec: NetworkSpec
    weight: Callable[[LayerSpec], Tensor | StoredLevels]
    activation_bits: Mapping[str, int] = field(default_factory=dict)
