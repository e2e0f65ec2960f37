"""Cost records: one line per layer, a total, hardware costs, the comparison of two reports; and their tables."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from slimbit.records.codec import pretty, record, strict, with_schema
from slimbit.records.errors import InputError
from slimbit.records.network import OtherParameter, OtherWork, Per
from slimbit.records.terminal import MISSING, UNITS, Fitted, quantity, shown
from slimbit.records.text import printable

SCHEMA = 1
BAR_WIDTH = 12
WIDE = 110

METRICS = (
    "parameters", "macs", "nonzero_macs", "esn_analog", "esn_digital", "esn_filterwise", "esn_analog_class_a",
    "bit_operations", "weight_bytes", "mean_bits",
)  # fmt: skip
"""Every cost metric by name, in the order of tables, JSON and CSV."""
LEVEL_METRICS = ("esn_analog", "esn_analog_class_a", "esn_analog_estimate", "esn_analog_estimate_plus")
"""Those that a float layer does not have; the total is over the layers that have levels."""


@record
class Metrics:
    """The cost metrics of a layer or of a network; also readable by name: ``metrics["macs"]``.

    Per image and in exact sums. A float layer has no levels, so its analog metrics are None; the total of a network
    that stays float in part is over its other layers, and a note of the report says so.

    Attributes:
        parameters: Parameter elements (weights and biases).
        macs: Multiply-accumulates, whole pruned filters and channels left out.
        nonzero_macs: Multiply-accumulates with a weight that is not zero.
        esn_analog: Sum of squared levels, Eq. (2) of Prune or quantize? (2019).
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


@record
class TotalCost(Metrics):
    """The network's cost.

    Attributes:
        layers: Number of counted layers.
        convolution_filters: Filters over all convolutions.
    """

    layers: int
    convolution_filters: int


@record
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
@strict
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
@strict
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
        inputs: Shapes of the inputs, batch included; the costs are those of one image.

    >>> import slimbit, torch
    >>> report = slimbit.cost(torch.nn.Linear(3, 2, bias=False), torch.zeros(1, 3), bits=1)
    >>> report.setting, report.total.macs, report.total["esn_digital"], [layer.kind for layer in report.layers]
    ('1 bits, max_abs, midrise', 6, 6, ['linear'])
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
    inputs: tuple[tuple[int, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, the JSON of ``slimbit cost --json`` (docs/reference/cost-json.md)."""
        return with_schema(self, SCHEMA)

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as JSON text; a metric that does not exist (levels of a float network) is null."""
        return pretty(self.to_dict(), indent=indent)

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

    def __rich__(self) -> "CostTable":
        return CostTable(self)

    def __str__(self) -> str:
        """The table of ``slimbit cost``, without colours."""
        return _plain_text(self)


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

    def notes(self) -> tuple[str, ...]:
        """What a reader should know before quoting the ratios: that the images are of different sizes."""
        mine, theirs = ([shape[1:] for shape in report.inputs] for report in (self.report, self.other))
        if not mine or not theirs or mine == theirs or self.report.per == "parameter":
            return ()
        shown = [", ".join("x".join(map(str, shape)) or "1" for shape in shapes) for shapes in (mine, theirs)]
        note = (
            f"The ratios compare images of different sizes: {self.report.network} was counted on {shown[0]}, "
            f"{self.other.network} on {shown[1]}."
        )
        return (note,)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "network": self.report.network,
            "versus": self.other.network,
            "ratios": self.ratios(),
            "notes": list(self.notes()),
        }

    def __rich__(self) -> Fitted:
        return totals_table([self.report, self.other], ratios=True)

    def __str__(self) -> str:
        """The table of both, without colours."""
        return _plain_text(self)


def _plain_text(shown_: Any) -> str:
    console = Console(width=WIDE, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(shown_)
    return capture.get().rstrip()


def _ratio(name: str, mine: float | None, theirs: float | None) -> Iterator[tuple[str, float]]:
    if mine and theirs is not None:
        yield name, theirs / mine


@dataclass(frozen=True)
class CostTable:
    """A report for the terminal: a line per layer, the totals, hardware costs, and what the numbers leave out.

    Attributes:
        report: What to show.
        others: Networks to compare it with.
        layers: Whether to list the layers; narrow terminals leave out shapes and positions.
    """

    report: CostReport
    others: tuple[CostReport, ...] = ()
    layers: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _title(self.report)
        if self.layers:
            yield Fitted(lambda width: _layer_tables(self.report, width))
            yield ""
        yield totals_table((self.report, *self.others), ratios=True)
        if self.report.hardware:
            yield ""
            yield _hardware_table(self.report, self.others)
        yield from _remarks(self.report)
        for other in self.others:
            for note in self.report.versus(other).notes():
                yield Text(f"Note: {printable(note)}", style="yellow")


def totals_table(reports: Sequence[CostReport], *, ratios: bool = False) -> Fitted:
    """Every metric of one or several reports, a column each.

    Args:
        reports: At least one.
        ratios: Whether to add how many times cheaper the first is than each of the others.
    """
    return Fitted(lambda width: (_totals(reports, width, ratios=ratios, units=units) for units in (True, False)))


def _totals(reports: Sequence[CostReport], width: int, *, ratios: bool, units: bool) -> Table:
    first, *others = reports
    headings = [f"{shown(report.network)}\n{shown(report.setting)}" for report in reports]
    columns = [[_with_unit(report.total[name], UNITS[name] if units else "") for name in METRICS] for report in reports]
    if ratios:
        headings += [f"{shown(other.network)} /\n{shown(first.network)}" for other in others]
        compared = [first.versus(other).ratios() for other in others]
        columns += [[f"{ratio[name]:.3g}x" if name in ratio else MISSING for name in METRICS] for ratio in compared]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("total", style="cyan", no_wrap=True)
    share = (width - max(map(len, METRICS))) // len(columns) - 2
    for place, (heading, cells) in enumerate(zip(headings, columns, strict=True)):
        room = max(share, *map(len, cells))  # a heading folds, a number does not
        style = "bold green" if place >= len(reports) else ""
        table.add_column(heading, justify="right", overflow="fold", max_width=room, style=style)
    for name, *cells in zip(METRICS, *columns, strict=True):
        table.add_row(name, *cells)
    estimates = [report.total.esn_analog_estimate for report in reports]
    if any(value is not None for value in estimates):
        table.add_row("esn_analog, Eq. (4)", *map(quantity, estimates), style="dim")
    return table


def _with_unit(value: float | None, unit: str) -> str:
    return f"{quantity(value)} {unit}".strip()


def _title(report: CostReport) -> Text:
    what = "per image" if report.per == "mac" else "per weight, positions not counted"
    name, setting = printable(report.network), printable(report.setting)
    return Text.assemble((name, "bold"), f"  {setting}  ", (f"cost {what}", "dim"))


LAYER_COLUMNS: dict[str, Callable[[LayerCost], str]] = {
    "shape": lambda layer: "x".join(map(str, layer.shape)),
    "positions": lambda layer: quantity(layer.positions),
    "MACs": lambda layer: quantity(layer.macs),
    "bits": lambda layer: f"{layer.mean_bits:.3g}",
    "ESN_d": lambda layer: quantity(layer.esn_digital),
    "ESN_a": lambda layer: quantity(layer.esn_analog),
    "S/N": lambda layer: quantity(layer.signal_to_noise),
}


def _layer_tables(report: CostReport, width: int) -> Iterator[Table]:
    wide = width >= WIDE
    columns = [name for name in LAYER_COLUMNS if wide or name not in ("shape", "positions")]
    yield _layer_table(report, columns, bar=True, longest=32 if wide else 24)
    for left_out in ("", "S/N", "ESN_a"):
        columns = [name for name in columns if name != left_out]
        yield _layer_table(report, columns, bar=False, longest=24)


def _layer_table(report: CostReport, columns: Sequence[str], *, bar: bool, longest: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", style="cyan", no_wrap=True, overflow="ellipsis", max_width=longest)
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    if bar:
        table.add_column("share of ESN_d", no_wrap=True)
    largest = max((layer.esn_digital for layer in report.layers), default=0)
    for layer in report.layers:
        shares = [_bar(layer.esn_digital, largest, report.total)] if bar else []
        table.add_row(shown(layer.name), *(LAYER_COLUMNS[name](layer) for name in columns), *shares)
    return table


def _bar(value: float, largest: float, total: Metrics) -> Text:
    length = BAR_WIDTH * value / largest if largest else 0
    whole, eighths = int(length), int(length % 1 * 8)
    bar = "█" * whole + ("", *"▏▎▍▌▋▊▉")[eighths]
    share = 100 * value / total.esn_digital if total.esn_digital else 0
    return Text.assemble((bar.ljust(BAR_WIDTH), "blue"), f" {share:4.1f} %")


def _hardware_table(report: CostReport, others: Sequence[CostReport]) -> Table:
    """Cost by every hardware model: with its energy, or beside that of other networks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("hardware", style="cyan")
    for heading in [shown(one.network) for one in (report, *others)] if others else ["cost"]:
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("unit")
    for heading in [f"{shown(o.network)} /\n{shown(report.network)}" for o in others] if others else ["energy"]:
        table.add_column(heading, justify="right", overflow="fold", style="bold green" if others else "")
    ratios = [report.versus(other).ratios() for other in others]
    for name, entry in report.hardware.items():
        costs = [quantity(one.hardware[name].total) if name in one.hardware else MISSING for one in (report, *others)]
        energy = MISSING if entry.picojoules is None else f"{quantity(entry.picojoules / 1e6)} µJ"
        last = [f"{ratio[name]:.3g}x" if name in ratio else MISSING for ratio in ratios] if others else [energy]
        table.add_row(shown(name), *costs, shown(entry.unit), *last)
    return table


def _remarks(report: CostReport) -> Iterable[Text]:
    if report.other_parameters:
        elements = sum(other.elements for other in report.other_parameters)
        owners = ", ".join(dict.fromkeys(other.owner for other in report.other_parameters))
        yield Text(
            f"Not costed: {quantity(elements)} parameters in {len(report.other_parameters)} tensors "
            f"({printable(owners)}).",
            style="dim",
        )
    for work in report.other_work:
        where = f"in {work.name}" if work.name else "in the network itself"
        with_ = f" with {', '.join(work.parameters)}" if work.parameters else ""
        yield Text(
            f"Not counted: {quantity(work.macs)} MACs of {work.operation} {printable(where + with_)}, "
            f"which no counted layer explains.",
            style="yellow",
        )
    for note in report.notes:
        yield Text(f"Note: {printable(note)}", style="yellow")
