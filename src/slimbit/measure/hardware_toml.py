"""A hardware cost model from a TOML table, of modes or of measured times: data only, nothing in it is executed.

The format is documented in docs/how-to/own-hardware-model.md.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator, model_validator

from slimbit.measure.hardware_models import MODELS, HardwareModel, UnfitError, skipping_cost, slices
from slimbit.measure.latency_table import LatencyTable
from slimbit.records.codec import canonical, from_plain, record
from slimbit.records.cost import LayerCost
from slimbit.records.files import read_toml_table

MAX_BYTES = 1_000_000
"""Largest file that is read; a table of every pair of widths takes a hundredth of it."""


Width = Annotated[int, Field(ge=1, le=64)]
Amount = Annotated[float, Field(gt=0)]


@record
class Mode:
    """One way in which the machine multiplies: ``[[mode]]``.

    Attributes:
        weight_bits: Widest weight that it takes.
        activation_bits: Widest activation that it takes.
        cost_per_mac: Cost of one MAC (of one pair of slices, where slices are given).
        picojoules_per_mac: Energy of the same.
        weight_slice_bits: Weights are taken in slices of this many bits (None: in one piece).
        activation_slice_bits: The same for activations.
    """

    weight_bits: Width
    activation_bits: Width
    cost_per_mac: Amount
    picojoules_per_mac: Amount | None = None
    weight_slice_bits: Width | None = None
    activation_slice_bits: Width | None = None

    def holds(self, layer: LayerCost) -> bool:
        """Whether the layer's weights and activations fit."""
        return layer.weight_bits <= self.weight_bits and layer.activation_bits <= self.activation_bits

    def passes(self, layer: LayerCost) -> int:
        """Pairs of slices per MAC: ``ceil(P_w / weight slice) * ceil(P_a / activation slice)``."""
        weight = slices(layer.weight_bits, self.weight_slice_bits) if self.weight_slice_bits else 1
        activation = slices(layer.activation_bits, self.activation_slice_bits) if self.activation_slice_bits else 1
        return weight * activation

    def cost(self, layer: LayerCost) -> float:
        """Cost of one MAC of the layer."""
        return self.passes(layer) * self.cost_per_mac


@record
class HardwareTable:
    """A whole file.

    Attributes:
        name: How reports call the machine; by default the file's name.
        unit: What the cost counts.
        source: Where the numbers come from.
        description: One line on the machine.
        skips_zeros: Whether zero weights are skipped.
        zero_overhead: Extra cost per non-zero weight for skipping, as a share of a MAC.
        mode: The machine's modes; a layer runs in the cheapest that holds it.
    """

    name: Annotated[str, Field(min_length=1, max_length=80)]
    unit: Annotated[str, Field(min_length=1, max_length=80)] = "cycles"
    source: Annotated[str, Field(max_length=1000)] = ""
    description: Annotated[str, Field(max_length=1000)] = ""
    skips_zeros: bool = False
    zero_overhead: Annotated[float, Field(ge=0)] = 0.0
    mode: Annotated[tuple[Mode, ...], Field(min_length=1, max_length=4096)]

    @field_validator("name", "unit", "source", "description")
    @classmethod
    def _printable(cls, text: str, info: ValidationInfo) -> str:
        # Reports print it to terminals, where control characters do things.
        if not text.isprintable():
            raise ValueError(f"{info.field_name} must be one line of printable text, got {text!r}")
        return text

    @field_validator("name")
    @classmethod
    def _not_built_in(cls, name: str) -> str:
        if name in MODELS:
            raise ValueError(f"name must not be the name of a built-in model, got {name!r}")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> "HardwareTable":
        if self.zero_overhead and not self.skips_zeros:
            raise ValueError("zero_overhead must come with skips_zeros = true, got skips_zeros = false")
        energies = [mode.picojoules_per_mac is not None for mode in self.mode]
        if any(energies) and not all(energies):
            raise ValueError(
                f"picojoules_per_mac must be in every [[mode]] or in none, got {sum(energies)} of {len(energies)}"
            )
        return self

    def mode_for(self, layer: LayerCost) -> Mode:
        """The cheapest mode that holds the layer, the first of equals."""
        fitting = [mode for mode in self.mode if mode.holds(layer)]
        if not fitting:
            widest = ", ".join(f"{mode.weight_bits}x{mode.activation_bits}" for mode in self.mode[:8])
            raise UnfitError(
                f"layer {layer.name!r} must fit a mode of hardware model {self.name!r} ({widest} bits),"
                f" got {layer.weight_bits}x{layer.activation_bits} bits"
            )
        return min(fitting, key=lambda mode: mode.cost(layer))

    def paid_macs(self, layer: LayerCost) -> float:
        """MACs that are paid: all, or with ``skips_zeros`` ``min(D, nnz c (1 + zero_overhead))``."""
        return skipping_cost(layer, self.zero_overhead) if self.skips_zeros else layer.macs

    def cost(self, layer: LayerCost) -> float:
        """Cost of a layer."""
        return self.paid_macs(layer) * self.mode_for(layer).cost(layer)

    def picojoules(self, layer: LayerCost) -> float | None:
        """Energy of a layer in the mode of least cost."""
        mode = self.mode_for(layer)
        if mode.picojoules_per_mac is None:
            return None
        return self.paid_macs(layer) * mode.passes(layer) * mode.picojoules_per_mac


def read_hardware_toml(path: Path) -> HardwareModel:
    """Read a hardware cost model from a TOML file.

    Raises:
        InputError: If the file cannot be read or says something unknown, in one sentence that names the file
            and the key.
    """
    content = {"name": path.stem, **read_toml_table(path, "hardware model", limit=MAX_BYTES)}
    if "layer" in content:
        return from_plain(LatencyTable, content, where=str(path)).model()
    table = from_plain(HardwareTable, content, where=str(path))
    return HardwareModel(
        table.name,
        table.unit,
        table.cost,
        table.picojoules if table.mode[0].picojoules_per_mac is not None else None,
        table.source or str(path),
        table.description,
        canonical(table).decode(),
    )
