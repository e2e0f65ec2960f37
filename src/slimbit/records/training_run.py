"""A training run read back: ``signal.jsonl``, and beside it, where they are, ``epochs.jsonl`` and ``train.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimbit.records.codec import from_json
from slimbit.records.errors import InputError
from slimbit.records.files import parse_json, read_regular
from slimbit.records.signal import EpochSignal
from slimbit.records.signal_file import read_signal
from slimbit.records.training import TrainEpoch

SIGNAL, EPOCHS, SETTINGS = "signal.jsonl", "epochs.jsonl", "train.json"
LARGEST = 1 << 28


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """What a training run left behind.

    Attributes:
        path: Folder of the run, or the file that was read.
        signal: Records by `slimbit.SignalTracker`, one per epoch, rising.
        epochs: What the trainer noted, by epoch; empty where somebody else's loop wrote the signal.
        config: Settings of `slimbit train`; empty likewise.

    >>> import slimbit, tempfile
    >>> network, data, out = slimbit.network("digits_resnet"), slimbit.open_data("digits"), tempfile.mkdtemp()
    >>> _ = slimbit.train(network, data, out=out, config=slimbit.TrainConfig(epochs=1, train_images=256))
    >>> run = slimbit.read_training_run(out)
    >>> run.signal[-1].epoch, run.epochs[1].loss > 0, run.signal[-1].signal_to_noise > 0
    (1, True, True)
    """

    path: Path
    signal: tuple[EpochSignal, ...]
    epochs: Mapping[int, TrainEpoch] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> str:
        """Name of the network, "" where nobody told."""
        return str(self.config.get("network") or "")

    def optimizer(self, name: str) -> float | None:
        """A number of the optimizer's settings; None where nobody told."""
        table = self.config.get("optimizer")
        value = table.get(name) if isinstance(table, Mapping) else None
        return float(value) if isinstance(value, int | float) else None


def signal_file(path: str | Path) -> Path:
    """The file with the signal: the one given, or ``signal.jsonl`` of a folder."""
    given = Path(path)
    return given / SIGNAL if given.is_dir() else given


def read_training_run(path: str | Path) -> TrainingRun:
    """Read a run.

    Args:
        path: Its folder, or a signal file alone.

    Raises:
        InputError: There is no signal, or a file is damaged; file and line are named.

    >>> read_training_run("nowhere")
    Traceback (most recent call last):
        ...
    slimbit.records.errors.InputError: signal file must exist, got none at nowhere
    """
    given = Path(path)
    if given.is_dir() and not (given / SIGNAL).exists():
        raise InputError(f"RUN must be a folder with a {SIGNAL} or such a file, got {given} without one")
    signal = read_signal(signal_file(given))
    if not signal:
        raise InputError(f"{signal_file(given)} must hold at least one epoch, got none")
    if not given.is_dir():
        return TrainingRun(path=given, signal=signal)
    return TrainingRun(path=given, signal=signal, epochs=read_epochs(given / EPOCHS), config=_config(given / SETTINGS))


def spread_epochs(signal: tuple[EpochSignal, ...], most: int) -> tuple[EpochSignal, ...]:
    """At most so many epochs, evenly spread, the last among them.

    >>> epochs = tuple(EpochSignal(epoch=n, iterations=1, layers=()) for n in range(1, 31))
    >>> [epoch.epoch for epoch in spread_epochs(epochs, 4)]
    [7, 15, 22, 30]
    """
    count = len(signal)
    places = sorted({count * (k + 1) // most - 1 for k in range(most)} - {-1})
    return tuple(signal[place] for place in places)


def read_epochs(file: Path) -> dict[int, TrainEpoch]:
    """What the trainer noted, by epoch, in order; empty where there is no such file.

    Raises:
        InputError: A line is damaged; it is named.
    """
    lines = _text(file).split("\n")[:-1]  # a line without its end is being written
    found = [from_json(TrainEpoch, line, where=f"line {number} of {file}") for number, line in enumerate(lines, 1)]
    return {epoch.epoch: epoch for epoch in found}


def _config(file: Path) -> Mapping[str, Any]:
    text = _text(file)
    data = parse_json(text, where=str(file)) if text else {}
    config = data.get("config", {}) if isinstance(data, dict) else None
    if not isinstance(config, dict):
        raise InputError(f"{file} must hold a table config, got {type(config).__name__}")
    return config


def _text(file: Path) -> str:
    if not file.exists():
        return ""
    try:
        return read_regular(file, "training record", limit=LARGEST).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} must be readable text, got {error}") from error
