"""What policies look at: layers, weights, sensitivity, and what compensation will repair."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from slimbit.numerics.allocate import WidthTable, width_table
from slimbit.numerics.moments import check_finite
from slimbit.records.config import Grid, QuantConfig
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec, NetworkSpec, Per
from slimbit.records.sensitivity import Sensitivity


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    """What policies look at; measured once per network and used for every point.

    Attributes:
        spec: The surveyed network.
        weights: Float weight of each layer by name, filters first.
        sensitivity: See `slimbit.measure.sensitivity`.
        compensation_factors: Share of each layer's sensitivity that compensation leaves, see
            `slimbit.apply.compensation`; a layer without an entry keeps all of it.
    """

    spec: NetworkSpec
    weights: Mapping[str, Tensor]
    sensitivity: Sensitivity | None = None
    compensation_factors: Mapping[str, float] = field(default_factory=dict)
    _tables: dict[tuple[str, str], WidthTable] = field(default_factory=dict, repr=False, compare=False)

    def layers(self, config: QuantConfig) -> Iterator[LayerSpec]:
        """The layers to quantize; a tensor used twice is decided once."""
        config.check_names(self.spec)
        yield from (layer for layer in self.spec.layers if not layer.shared_with and layer.name not in config.skip)

    def weight(self, layer: LayerSpec) -> Tensor:
        """Float weight of a layer, checked."""
        if layer.name not in self.weights:
            raise InputError(f"weights must hold every layer, got none for {layer.name!r}")
        weight = self.weights[layer.name].detach()
        if tuple(weight.shape) != layer.shape:
            raise InputError(f"weight of layer {layer.name!r} must be {layer.shape}, got {tuple(weight.shape)}")
        check_finite(weight, f"weight of layer {layer.name!r}")
        return weight.float()

    def positions(self, layer: LayerSpec, per: Per) -> int:
        """``c_l`` of a layer, with the positions of layers that use the very same tensor."""
        sharing = [other for other in self.spec.layers if other.shared_with == layer.name]
        return layer.multiplicity(per) + sum(other.multiplicity(per) for other in sharing)

    def checked_sensitivity(self) -> Sensitivity:
        """The sensitivity, of every layer."""
        if self.sensitivity is None:
            raise InputError("plan inputs must hold a sensitivity for a priced policy, got none")
        missing = [x.name for x in self.spec.layers if not x.shared_with and x.name not in self.sensitivity.filters]
        if missing:
            raise InputError(f"sensitivity must cover every layer, got none for {', '.join(missing)}")
        return self.sensitivity

    def width_table(self, layer: LayerSpec, grid: Grid) -> WidthTable:
        """`slimbit.numerics.allocate.width_table` of a layer, worked out once."""
        key = (layer.name, grid)
        if key not in self._tables:
            self._tables[key] = width_table(self.weight(layer), grid=grid)
        return self._tables[key]
