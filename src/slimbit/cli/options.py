"""Options that several commands have in common."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from slimbit.records.cost_names import HARDWARE, is_hardware
from slimbit.records.errors import InputError, closest
from slimbit.records.keep import PRUNED
from slimbit.records.training import TrainConfig

if TYPE_CHECKING:
    from slimbit.compress.model import CompressedModel

VerifyData = Annotated[
    str | None, typer.Option(metavar="SPEC", help="Data to verify on; default: random images, no accuracy.")
]
VerifyImages = Annotated[int, typer.Option(min=1, help="Images to verify on.")]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Run the code that the folder names to build its network.")
]
"""How a file is verified, alike in ``slimbit export`` and ``slimbit verify``."""
BatchSize = Annotated[
    int | None, typer.Option(help="Images that are calibrated with, or scored, at once; default: by their size.")
]
Memory = Annotated[
    float | None,
    typer.Option(metavar="GIB", help="GiB for activations of calibration images; default: half of what is free."),
]
"""What large images need, alike in every command that calibrates."""
FACTORS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
AMOUNT = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,3})?([kKMGT]?)")


def training_options(
    kind: Literal["tune", "learn"], epochs: int | None, *, config: Path | None = None, **settings: object
) -> Mapping[str, Any] | None:
    """Settings of `TuneConfig` or `LearnConfig` from options; None where nothing is trained.

    Args:
        kind: What the options begin with.
        epochs: ``--tune-epochs`` or ``--learn-epochs``; None or 0 = no training.
        config: ``--tune-config`` or ``--learn-config``, put over the settings that follow from the others.
        settings: Others; None = not given.

    Raises:
        InputError: Settings of a training that does not take place.
    """
    train = None if config is None else TrainConfig.from_toml(config).model_dump(exclude_unset=True)
    given = {name: value for name, value in {**settings, "train": train}.items() if value is not None}
    if epochs:
        return {"epochs": epochs, **given}
    names = {"learning_rate": f"--{kind}-lr", "train": f"--{kind}-config"}
    for name in given:
        if train is not None and set(train) == {"augment"} and name == "train":
            continue  # whose crops calibration may follow
        option = names.get(name, f"--{name.replace('_', '-')}")
        raise InputError(f"--{kind}-epochs must be given with {option}, got none")
    return None


def parse_budget(text: str) -> tuple[str, float]:
    """Cost and amount of ``COST=VALUE``.

    >>> parse_budget("esn_digital=1.5G"), parse_budget("edge-npu.toml=2M")
    (('esn_digital', 1500000000.0), ('edge-npu.toml', 2000000.0))
    """
    metric, _, amount = text.partition("=")
    match = AMOUNT.fullmatch(amount.strip())
    value = math.inf if match is None else float(match[1] + (match[2] or "")) * FACTORS[match[3]]
    if not metric.strip() or math.isinf(value):
        raise InputError(f"--budget must be COST=VALUE like esn_digital=20M, 1.5G or 300k, got {text!r}")
    return metric.strip(), value


def load_folder(folder: Path, *, allow_code: bool) -> "CompressedModel":
    """The model of a folder that ``slimbit pick`` or ``slimbit prune`` wrote; consent is asked for before it is read.

    Raises:
        InputError: As `slimbit.load`, or a folder that only Python can open.
    """
    from slimbit.artifacts.manifest import MANIFEST, read_manifest
    from slimbit.artifacts.pruned import read_pruned
    from slimbit.compress.load import load
    from slimbit.sources.networks import check_trusted_network

    name = next((one for one in (PRUNED, MANIFEST) if (folder / one).is_file()), "")
    if name:
        source = (read_pruned(folder) if name == PRUNED else read_manifest(folder)).network.source
        check_trusted_network(source, str(folder / name), allow_code=allow_code, otherwise="")
        if not source:
            raise InputError(
                f"{folder} does not say how its network is built: open it in Python, "
                f"slimbit.load({str(folder)!r}, model=network)"
            )
    return load(folder, allow_code=allow_code)


def check_machines(asked: Iterable[str | None], costs: Iterable[str], option: str) -> None:
    """Raise `InputError` for ``hardware:NAME`` of a machine that neither Slimbit nor the run knows.

    Args:
        asked: Costs of an option; None: not given.
        costs: Names that the run's points have costs under.
        option: Its name.
    """
    from slimbit.measure.hardware import hardware_names

    ours = (one.removeprefix(HARDWARE) for one in costs if one.startswith(HARDWARE))
    known = tuple(dict.fromkeys((*ours, *hardware_names())))
    for cost in asked:
        name = (cost or "").removeprefix(HARDWARE)
        if cost and cost != name and not is_hardware(name) and name not in known:
            raise InputError(
                f"{option} must name a machine that is built in, that the run was swept for, or that --hardware "
                f"describes, got {cost!r}{closest(name, known)}: add --hardware {name}.toml, the file of the machine. "
                f"Known: {', '.join(known)}"
            )


@contextmanager
def stopped_training(console: Console, folder: str) -> Iterator[None]:
    """Say how to go on where training is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        text = f"stopped; what is trained is kept in {folder}, the same command continues"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        raise
