"""Cost in a terminal: one table per report, one bar per layer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from slimbit.records.cost import METRICS, CostReport, LayerCost, Metrics
from slimbit.records.text import printable
from slimbit.report.fitting import Fitted, shown

BAR_WIDTH = 12
WIDE = 110
MISSING = "-"
# unit of each metric as shown beside its name
UNITS = {
    "parameters": "",
    "macs": "MAC",
    "nonzero_macs": "MAC",
    "esn_analog": "step²",
    "esn_digital": "bit",
    "esn_filterwise": "bit",
    "esn_analog_class_a": "step²",
    "bit_operations": "bit²",
    "weight_bytes": "B",
    "mean_bits": "bit",
}


def quantity(value: float | None) -> str:
    """A number short enough for a column: three to four digits and a suffix; a dash for what does not exist.

    >>> quantity(41_075_328), quantity(272_762), quantity(16.25), quantity(0), quantity(None)
    ('41.08M', '272.8k', '16.25', '0', '-')
    """
    if value is None:
        return MISSING
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


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
