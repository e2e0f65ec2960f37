"""Text for the terminal: numbers for people, and tables that fit: names shrink first, then whole columns go."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from slimbit.records.text import printable

MISSING = "-"
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
"""Unit of each metric as shown beside its name."""
LEAST_NAME = 12
"""Characters that a name keeps before a column is left out for it."""
ENDLESS = 10_000


@dataclass(frozen=True)
class Fitted:
    """The fullest of several tables that fits.

    Attributes:
        tables: From the width there is to tables, the fullest first.
        names: Place of the column with names; the others are taken to be numbers.
    """

    tables: Callable[[int], Iterable[Table]]
    names: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        endless = options.update(width=ENDLESS)
        for table in self.tables(options.max_width):
            column = table.columns[self.names]
            longest = max((Measurement.get(console, endless, cell).maximum for cell in column.cells), default=0)
            longest = min(longest, column.max_width or longest)
            room = options.max_width - (Measurement.get(console, endless, table).maximum - longest)
            column.max_width = max(1, min(longest, room))
            if room >= min(longest, LEAST_NAME):
                break
        yield table


def shown(text: str) -> str:
    r"""Text of others for the terminal: neither its control characters nor its brackets are obeyed.

    >>> print(shown("[bold]conv\x07"))
    \[bold]conv\x07
    """
    return escape(printable(text))


def score_text(value: float, scale: float) -> str:
    """A score with two decimals, with four where scores are at most 1, so that points differ in a table.

    Args:
        value: The score.
        scale: That of the float network, or another that says how large scores are.

    >>> score_text(91.234, 92.5), score_text(0.91234, 0.925)
    ('91.23', '0.9123')
    """
    return f"{value:.{4 if abs(scale) <= 1 else 2}f}"


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
