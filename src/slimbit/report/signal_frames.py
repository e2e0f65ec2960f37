"""Data behind the page of a training run: plain numbers per epoch and per layer, the closed form beside them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbit.numerics.walk import predicted_signal_to_noise
from slimbit.records.errors import InputError, closest
from slimbit.records.signal import DEAD_THRESHOLDS, EpochSignal, LayerSignal
from slimbit.records.training_run import TrainingRun

SCHEMA = 1
QUOTED = 5e-2
"""The threshold of dead filters that tables show."""
CLOSED_FORM = (
    "The closed form knows learning rate, weight decay, momentum and the number of steps, nothing else. It assumes "
    "scale-invariant weights (a convolution before batch normalization) in equilibrium at the first learning rate, and "
    "gradients of constant size. Nothing is fitted; docs/explanation/random-walk.md says where it breaks."
)
NO_SCHEDULE = (
    "The closed form is not drawn: it needs learning rates, weight decay and momentum from the first epoch on, as "
    "slimbit train keeps them."
)
ESTIMATE = (
    "ESN_a of an epoch is an estimate from its signal-to-noise ratio, Eq. (4) of the paper. The corrected form adds "
    "one to S/N; where S/N is below 20 the two differ by more than 5 %."
)
NO_POSITIONS = "ESN_a is not known: the records do not say how many output positions the layers have."


@dataclass(frozen=True, kw_only=True)
class EpochFrame:
    """One epoch; what is not known or not finite is None."""

    epoch: int
    learning_rate: float | None
    """Of the last step."""
    loss: float | None
    accuracy: float | None
    accuracy_mean: float | None
    """Of the epoch and its two neighbours."""
    signal_to_noise: float | None
    esn_analog_estimate: float | None
    esn_analog_estimate_plus: float | None
    predicted_signal_to_noise: float | None
    predicted_esn_analog: float | None
    filters: int
    dead: tuple[int, ...]
    """Number of dead filters at each of `DEAD_THRESHOLDS`."""


@dataclass(frozen=True, kw_only=True)
class LayerSeries:
    """S/N of one layer over the epochs of the run; None in epochs without a record of it."""

    name: str
    signal_to_noise: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Everything that a training run's page shows.

    Attributes:
        run: Its folder, as commands name it.
        network: Name of the network, "" where nobody told.
        epochs: Rising.
        layers: In order of the network.
        thresholds: Of dead filters.
        settings: By name, for people.
        notes: What to know before quoting.
    """

    run: str
    network: str
    epochs: tuple[EpochFrame, ...]
    layers: tuple[LayerSeries, ...]
    thresholds: tuple[float, ...] = DEAD_THRESHOLDS
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def training_data(run: TrainingRun) -> TrainingData:
    """What a page and a table of a training run show."""
    predicted = predictions(run)
    accuracies = {number: row.accuracy for number, row in run.epochs.items()}
    epochs = tuple(_epoch_frame(run, epoch, predicted.get(epoch.epoch), accuracies) for epoch in run.signal)
    names = tuple(dict.fromkeys(layer.name for epoch in run.signal for layer in epoch.layers))
    found = [{layer.name: finite(layer.signal_to_noise) for layer in epoch.layers} for epoch in run.signal]
    unknown = any(epoch.esn_analog_estimate is None for epoch in epochs)
    return TrainingData(
        run=str(run.path),
        network=run.network,
        epochs=epochs,
        layers=tuple(LayerSeries(name=x, signal_to_noise=tuple(row.get(x) for row in found)) for x in names),
        settings=_settings(run),
        notes=(NO_POSITIONS if unknown else ESTIMATE, CLOSED_FORM if predicted else NO_SCHEDULE),
    )


def predictions(run: TrainingRun) -> dict[int, float]:
    """Predicted S/N by epoch, from the learning rates that the trainer noted; empty where it did not.

    Within an epoch the learning rate is taken to go straight from that of its first step to that of its last.
    """
    weight_decay, momentum = run.optimizer("weight_decay"), run.optimizer("momentum")
    known: list[NDArray[np.float64]] = []
    while (row := run.epochs.get(len(known) + 1)) is not None:
        known.append(np.linspace(row.learning_rate_first, row.learning_rate_last, max(1, row.iterations)))
    if not weight_decay or momentum is None or not any(rates.any() for rates in known):
        return {}
    found = predicted_signal_to_noise(known, 1, weight_decay=weight_decay, momentum=momentum)
    return dict(enumerate(found, 1))


def only_layer(run: TrainingRun, name: str) -> TrainingRun:
    """The run as if it had one layer.

    Raises:
        InputError: No epoch has a record of it.
    """
    kept = [replace(epoch, layers=tuple(x for x in epoch.layers if x.name == name)) for epoch in run.signal]
    signal = tuple(epoch for epoch in kept if epoch.layers)
    if not signal:
        names = tuple(dict.fromkeys(layer.name for epoch in run.signal for layer in epoch.layers))
        raise InputError(f"--layer must be a layer of the run, got {name!r}{closest(name, names)}")
    return replace(run, signal=signal)


def json_data(run: TrainingRun) -> dict[str, Any]:
    """The run for ``slimbit signal --json``: per epoch the table's numbers, and those of every layer."""
    data = training_data(run)
    rows = [
        {**_row(frame), "layers": [_layer_row(layer) for layer in epoch.layers]}
        for frame, epoch in zip(data.epochs, run.signal, strict=True)
    ]
    return {"schema": SCHEMA, "network": data.network, "notes": list(data.notes), "epochs": rows}


def finite(value: float | None) -> float | None:
    """The number, or None where JSON and figures have no word for it."""
    return value if value is not None and math.isfinite(value) else None


def moving_mean(values: Sequence[float | None], place: int) -> float | None:
    """Mean of what is known of a value and its two neighbours.

    >>> [moving_mean([1.0, 2.0, None, 6.0], place) for place in range(4)]
    [1.5, 1.5, 4.0, 6.0]
    """
    near = [value for value in values[max(0, place - 1) : place + 2] if value is not None]
    return math.fsum(near) / len(near) if near else None


def _epoch_frame(
    run: TrainingRun, epoch: EpochSignal, predicted: float | None, accuracies: Mapping[int, float | None]
) -> EpochFrame:
    row, number = run.epochs.get(epoch.epoch), epoch.epoch
    near = [accuracies.get(other) for other in (number - 1, number, number + 1)]
    weighted = _macs(epoch)
    return EpochFrame(
        epoch=number,
        learning_rate=None if row is None else finite(row.learning_rate_last),
        loss=None if row is None else finite(row.loss),
        accuracy=finite(accuracies.get(number)),
        accuracy_mean=None if accuracies.get(number) is None else moving_mean(near, 1),
        signal_to_noise=finite(epoch.signal_to_noise),
        esn_analog_estimate=finite(epoch.esn_analog_estimate),
        esn_analog_estimate_plus=finite(epoch.esn_analog_estimate_plus),
        predicted_signal_to_noise=finite(predicted),
        predicted_esn_analog=None if predicted is None or weighted is None else finite(weighted * predicted / 12),
        filters=epoch.filters,
        dead=tuple(epoch.dead_filters.values()),
    )


def _macs(epoch: EpochSignal) -> int | None:
    """``sum_l c_l ||W_l||_0``; None where the positions of a layer are not known."""
    if any(layer.positions is None for layer in epoch.layers):
        return None
    return sum((layer.positions or 0) * layer.nonzero_weights for layer in epoch.layers)


JSON_NAMES = {"esn_analog": "esn_analog_estimate", "esn_analog_corrected": "esn_analog_estimate_plus"}
"""Keys of ``slimbit signal --json`` that are older than the names of what they hold: Eq. (4) and its next order."""


def _row(frame: EpochFrame) -> dict[str, Any]:
    dead = {f"{threshold:g}": count for threshold, count in zip(DEAD_THRESHOLDS, frame.dead, strict=True)}
    names = ("epoch", "learning_rate", "loss", "accuracy", "signal_to_noise", *JSON_NAMES,
             "predicted_signal_to_noise", "predicted_esn_analog", "filters")  # fmt: skip
    return {**{name: getattr(frame, JSON_NAMES.get(name, name)) for name in names}, "dead_filters": dead}


def _layer_row(layer: LayerSignal) -> dict[str, Any]:
    names = ("signal", "noise", "signal_to_noise", *JSON_NAMES)
    numbers = {name: finite(getattr(layer, JSON_NAMES.get(name, name))) for name in names}
    dead = {f"{threshold:g}": count for threshold, count in layer.dead_filters.items()}
    return {"layer": layer.name, **numbers, "filters": len(layer.filter_signal), "dead_filters": dead}


def _settings(run: TrainingRun) -> dict[str, str]:
    tables = {name: value for name, value in run.config.items() if isinstance(value, Mapping)}
    plain = {name: value for name, value in run.config.items() if name not in tables and value is not None}
    inner = {f"{table} {name}": value for table, rows in tables.items() for name, value in rows.items()}
    return {name.replace("_", " "): str(value) for name, value in {**plain, **inner}.items() if value not in ("", [])}
