"""`slimbit networks`, `slimbit hardware`, `slimbit recipes`: what can be named."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from slimbit.records.recipes import recipe_file, recipe_names
from slimbit.records.training import TrainConfig

SHORTCUTS = (
    "resnetN has 1x1 convolutions as shortcuts of all three stages; -A has none (padded with zeros); -B has "
    "them in stages 2 and 3, where the size changes. Weights fit one of them: most published CIFAR weights are -A.\n"
    "NAME@0.5 has half the filters in every layer (width multiplier). Further networks: timm:NAME, a file (.onnx, "
    ".pt2, .safetensors), package.module:callable."
)


def networks() -> None:
    """List the networks that come with Slimbit, and what -A, -B and @0.5 mean."""
    _print(("network", "input", "outputs"), network_rows(), SHORTCUTS)


def hardware() -> None:
    """List the hardware cost models that come with Slimbit."""
    about = "Your own: a TOML file or package.module:function, see docs/how-to/own-hardware-model.md."
    _print(("hardware", "unit", "what it is"), hardware_rows(), about)


def recipes() -> None:
    """List the training recipes of `slimbit train --recipe`."""
    about = "-paper: as published; -quick: minutes to hours on a CPU; -smoke: seconds, to see that everything runs."
    _print(("recipe", "network", "epochs", "what it is for"), recipe_rows(), about)


def network_rows() -> list[tuple[str, str, str]]:
    """Name, input and number of outputs of every network.

    >>> network_rows()[0]
    ('resnet8', '3x32x32', '10')
    """
    from slimbit.zoo.registry import ENTRIES

    return [(name, "x".join(map(str, entry.shape)), str(entry.classes)) for name, entry in ENTRIES.items()]


def hardware_rows() -> list[tuple[str, str, str]]:
    """Name, unit and description of every hardware cost model.

    >>> hardware_rows()[0][:2]
    ('scalar_cpu', 'MAC cycles')
    """
    from slimbit.measure.hardware import hardware_names, load_hardware

    models = map(load_hardware, hardware_names())
    return [(model.name, model.unit, model.description) for model in models]


def recipe_rows() -> list[tuple[str, str, str, str]]:
    """Name, network, epochs and purpose of every recipe.

    >>> recipe_rows()[0][:3]
    ('fig2-paper', 'resnet20', '160')
    """
    rows = []
    for name in recipe_names():
        config = TrainConfig.from_recipe(name)
        first = recipe_file(name).read_text(encoding="utf-8").splitlines()[0]
        rows.append((name, config.network or "any", str(config.epochs), first.removeprefix("# ")))
    return rows


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]], about: str) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0])
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{about}", markup=False)
