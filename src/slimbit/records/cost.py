"""Cost records: one line per layer, a total, hardware costs, and the comparison of two reports."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from slimbit.records.errors import InputError
from slimbit.records.network import OtherParameter, OtherWork, Per

SCHEMA = 1

METRICS = (
    "parameters", "macs", "nonzero_macs", "esn_analog", "esn_digital", "esn_filterwise", "esn_analog_class_a",
    "bit_operations", "weight_bytes", "mean_bits",
)  # fmt: skip
"""Every cost metric by name, in the order of tables, JSON and CSV."""
LEVEL_METRICS = ("esn_analog", "esn_analog_class_a", "esn_analog_estimate", "esn_analog_estimate_plus")
"""Those that a float layer does not have; the total is over the layers that have levels."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The cost metrics of a layer or of a network; also readable by name: ``metrics["macs"]``.

    Per image and in exact sums. A float layer has no levels, so its analog metrics are None; the total of a network
    that stays float in part is over its other layers, and a note of the report says so.

    Attributes:
        parameters: Parameter elements (weights and biases).
        macs: Multiply-accumulates, whole pruned filters and channels left out.
        nonzero_macs: Multiply-accumulates with a weight that is not zero.
        esn_analog: Sum of squared levels, Eq. (2) of HkxAS6VFDB.
        esn_digital: Sum of bits per level, Eq. (3).
        esn_filterwise: Every weight of a filter at the width of the filter's widest level (section 3).
        esn_analog_class_a: Every weight of a layer at the square of its largest level (derived).
        bit_operations: MACs x weight bits of the layer x activation bits.
        weight_bytes: Weight memory with one bit width per filter.
        mean_bits: Bits per weight, pruned weights included as 0.
        signal_to_noise: ``||W||^2 / ||W - step * levels||^2``, a power ratio; None where nothing was rounded.
        esn_analog_estimate: Eq. (4): ``positions * nonzero weights * S/N / 12``; None where the rounding error is not
            uniform (the grid ``midrise_zero``), or where the weights behind the levels are not known.
        esn_analog_estimate_plus: Its next order, with ``S/N + 1`` (derived).
    """

    parameters: int
    macs: int
    nonzero_macs: int
    esn_analog: float | None
    esn_digital: int
    esn_filterwise: int
    esn_analog_class_a: float | None
    bit_operations: int
    weight_bytes: float
    mean_bits: float
    signal_to_noise: float | None = None
    esn_analog_estimate: float | None = None
    esn_analog_estimate_plus: float | None = None

    def __getitem__(self, metric: str) -> float | None:
        if metric not in METRIC_FIELDS:
            raise KeyError(metric)
        value: float | None = getattr(self, metric)
        return value

    def metrics(self) -> dict[str, float | None]:
        """Every metric by name, in table order."""
        return {name: self[name] for name in METRIC_FIELDS}


METRIC_FIELDS = tuple(f.name for f in fields(Metrics))


@dataclass(frozen=True, kw_only=True)
class TotalCost(Metrics):
    """The network's cost.

    Attributes:
        layers: Number of counted layers.
        convolution_filters: Filters over all convolutions.
    """

    layers: int
    convolution_filters: int


@dataclass(frozen=True, kw_only=True)
class LayerCost(Metrics):
    """One layer's cost.

    Attributes:
        name: As in `LayerSpec`.
        kind: As in `LayerSpec`.
        shape: Filters first.
        filters: Number of filters.
        positions: The multiplicity ``c_l`` used: output positions, or 1 for ``per="parameter"``.
        weights: Number of weights, pruned ones included.
        grid: Grid of the levels, or the float type ("float32").
        weight_bits: Width of the layer's widest level.
        activation_bits: Width of its inputs.
        steps: Step Delta_l: one number, or one per filter; empty for float.
        filter_bits: Width of the widest level of each filter; 0 = pruned.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    filters: int
    positions: int
    weights: int
    grid: str
    weight_bits: int
    activation_bits: int
    steps: tuple[float, ...] = ()
    filter_bits: tuple[int, ...] = ()

    @property
    def has_levels(self) -> bool:
        """Whether its weights are levels; a float layer has none."""
        return self.esn_analog is not None


@dataclass(frozen=True)
class HardwareCost:
    """What one hardware cost model says of a network.

    Attributes:
        model: Its name.
        unit: What ``total`` counts, e.g. "MAC cycles" or "bits".
        total: Sum over layers.
        layers: One value per layer, in the report's order.
        picojoules: Energy per image where the model's constants allow it, else None.
        source: Where the model comes from.
    """

    model: str
    unit: str
    total: float
    layers: tuple[float, ...]
    picojoules: float | None
    source: str = ""


@dataclass(frozen=True)
class CostReport:
    """What a network costs, layer by layer; made by `slimbit.cost`, readable without torch.

    Attributes:
        network: Name of what was measured.
        per: Weighting: "mac" (positions count) or "parameter" (each weight once).
        setting: How the weights were taken, e.g. ``4 bits, max_abs`` or ``float32``.
        total: The network's cost.
        layers: Every counted layer in order of first use.
        hardware: Hardware cost models by name.
        other_parameters: Parameters in no counted layer; in ``total.parameters``, in no layer's.
        other_work: Multiply-accumulates that no counted layer explains; in no total.
        notes: What a reader should know before quoting the numbers, warnings among them.
    """

    network: str
    per: Per
    setting: str
    total: TotalCost
    layers: tuple[LayerCost, ...]
    hardware: Mapping[str, HardwareCost] = field(default_factory=dict)
    other_parameters: tuple[OtherParameter, ...] = ()
    other_work: tuple[OtherWork, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, the JSON of ``slimbit cost --json`` (docs/reference/cost-json.md)."""
        return {
            "schema": SCHEMA,
            "network": self.network,
            "per": self.per,
            "setting": self.setting,
            "total": asdict(self.total),
            "layers": [asdict(layer) for layer in self.layers],
            "hardware": {name: asdict(cost) for name, cost in self.hardware.items()},
            "other_parameters": [asdict(other) for other in self.other_parameters],
            "other_work": [asdict(work) for work in self.other_work],
            "notes": list(self.notes),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as JSON text; a metric that does not exist (levels of a float network) is null."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_csv(self, *, layers: bool = True) -> str:
        """A header, one line per layer (unless ``layers`` is off) and a last line ``total``."""
        columns = ["name", "kind", "filters", "positions", "weights", "weight_bits", *METRIC_FIELDS]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for layer in self.layers if layers else ():
            writer.writerow(asdict(layer))
        writer.writerow({"name": "total", **asdict(self.total)})
        return text.getvalue()

    def versus(self, other: "CostReport") -> "Comparison":
        """How many times cheaper this network is than ``other``, metric by metric.

        Raises:
            InputError: One report is per MAC and the other per parameter.
        """
        return Comparison(self, other)

    def __rich__(self) -> Any:
        """A table in a terminal: ``rich.print(report)``."""
        from slimbit.report.tables import CostTable

        return CostTable(self)


@dataclass(frozen=True)
class Comparison:
    """Two cost reports side by side.

    Raises:
        InputError: One report is per MAC and the other per parameter.
    """

    report: CostReport
    other: CostReport

    def __post_init__(self) -> None:
        if self.report.per != self.other.per:
            raise InputError(f"compared reports must both be per {self.report.per}, got one per {self.other.per}")

    def ratios(self) -> dict[str, float]:
        """``other / report`` for every metric and hardware model that both have: above 1, ``report`` is cheaper.

        Analog metrics are left out where one network stays float in layers in which the other has levels.
        """
        return dict(self._ratios())

    def _ratios(self) -> Iterator[tuple[str, float]]:
        floats = [{layer.name for layer in x.layers if not layer.has_levels} for x in (self.report, self.other)]
        for name in METRICS:
            if name not in LEVEL_METRICS or floats[0] == floats[1]:
                yield from _ratio(name, self.report.total[name], self.other.total[name])
        for name in (name for name in self.report.hardware if name in self.other.hardware):
            yield from _ratio(name, self.report.hardware[name].total, self.other.hardware[name].total)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"network": self.report.network, "versus": self.other.network, "ratios": self.ratios()}

    def __rich__(self) -> Any:
        """A table in a terminal."""
        from slimbit.report.tables import totals_table

        return totals_table([self.report, self.other], ratios=True)


def _ratio(name: str, mine: float | None, theirs: float | None) -> Iterator[tuple[str, float]]:
    if mine and theirs is not None:
        yield name, theirs / mine
