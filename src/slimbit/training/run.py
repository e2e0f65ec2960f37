"""A training run in a folder: settings, one line per epoch, signal and noise, checkpoint, and the trained weights."""

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import nn

from slimbit.records.codec import canonical, json_file
from slimbit.records.errors import InputError
from slimbit.records.files import as_path, not_written, parse_json, read_regular, write_whole
from slimbit.records.signal import EpochSignal
from slimbit.records.training import TrainConfig, TrainEpoch
from slimbit.records.training_run import EPOCHS, SETTINGS, SIGNAL, read_epochs
from slimbit.training.checkpoint import plain
from slimbit.training.devices import is_first_process
from slimbit.training.fit import CHECKPOINT, fit
from slimbit.training.task import Score, TrainingProgress, TrainTask
from slimbit.training.writers import JsonLinesWriter

MODEL, WEIGHTS, LOCK = "model.safetensors", "weights", ".lock"
LARGEST = 1 << 24


@dataclass(frozen=True, kw_only=True)
class RunLabel:
    """What the folder says about network and data.

    Attributes:
        card: Model card of the weights, see docs/how-to/train.md; accuracy is added.
        data: Name of the data set; a run is continued with the same one only.
        fingerprint: Of everything else that must be the same when a run is continued (images, normalization, first
            weights, pruning); "" = not compared.
        evaluation: Digest of held-out and test images with their labels; "" = not compared.
        test: Scores the chosen weights once, at the end; None = not scored.
    """

    card: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    fingerprint: str = ""
    evaluation: str = ""
    test: Score | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        epoch: Whose weights were chosen.
        epochs: All epochs, in order.
        test_accuracy: Of the chosen weights; None where nothing scores them.
    """

    epoch: int
    epochs: tuple[TrainEpoch, ...]
    test_accuracy: float | None

    @property
    def accuracy(self) -> float | None:
        """On the held-out images, of the chosen epoch."""
        return next((done.accuracy for done in self.epochs if done.epoch == self.epoch), None)


def train_network(
    model: nn.Module, task: TrainTask, config: TrainConfig, out: str | Path, *, label: RunLabel | None = None
) -> TrainResult:
    """Train ``model`` itself and keep everything in a folder; the same call continues a run that was stopped.

    It trains on a GPU if there is one, and at the end is on the device on which it was given.

    The folder holds ``train.json`` (settings, versions, result), ``epochs.jsonl``, ``signal.jsonl``,
    ``checkpoint.safetensors``, ``model.safetensors`` (the chosen weights, at the end) and, where asked for, the
    weights of every epoch in ``weights/``.

    Args:
        model: Changed: at the end it holds the chosen weights.
        task: What to learn.
        config: Settings.
        out: Folder, new or of the same run.
        label: What the folder says about network and data.

    Raises:
        InputError: Settings that do not fit images or folder, a run with other settings, a damaged checkpoint.
        TrainingError: The loss is no finite number any more.
        StoreError: Something cannot be written; the last checkpoint is whole.
    """
    folder, label = as_path(out, "out"), label or RunLabel()
    devices = {parameter.device for parameter in model.parameters()}
    result = _trained(model, task, config, folder, label)
    if len(devices) == 1:
        model.to(devices.pop())
    return result


def _trained(model: nn.Module, task: TrainTask, config: TrainConfig, folder: Path, label: RunLabel) -> TrainResult:
    if not is_first_process():
        fit(model, task, config, folder=folder)
        return TrainResult(epoch=0, epochs=(), test_accuracy=None)
    with _locked(folder):
        settings, caution = _begin(folder, config, label)
        if caution and task.listener is not None:
            now = TrainingProgress(epoch=1, epochs=config.epochs, step=0, steps=1, loss=float("nan"), message=caution)
            task.listener(now)
        log = _Log(folder, config, task.epoch_done)
        chosen = fit(model, replace(task, epoch_done=log), config, folder=folder)
        accuracy = None if label.test is None else float(label.test(model))
        result = TrainResult(epoch=chosen, epochs=tuple(log.epochs), test_accuracy=accuracy)
        _write_weights(folder / MODEL, model, _card(label, result))
        told = {"epoch": chosen, "accuracy": result.accuracy, "test_accuracy": accuracy}
        _write_json(folder / SETTINGS, {**settings, "result": told})
    return result


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time works on a run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / LOCK, timeout=0).acquire()
    except Timeout as error:
        raise InputError(f"run {folder} must be free, got one that another process is working on") from error
    except OSError as error:
        raise not_written(folder, error) from error
    with held:
        yield


def _begin(folder: Path, config: TrainConfig, label: RunLabel) -> tuple[dict[str, Any], str]:
    """Write ``train.json``, or check that the run that began is this one.

    Returns:
        What it holds, and a sentence on versions that have changed since, "" where none has.
    """
    path = folder / SETTINGS
    said: dict[str, Any] = {
        "slimbit": version("slimbit"),
        "config": config.model_dump(mode="json"),
        "digest": config.digest(),
        "data": label.data,
        "fingerprint": label.fingerprint,
        "evaluation": label.evaluation,
        "environment": _environment(),
    }
    if not path.exists():
        others = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK)
        if others:
            raise InputError(f"run must be a new folder, an empty one or a run, got {folder} with {others[0]!r} in it")
        _write_json(path, said)
        return said, ""
    try:
        before = parse_json(read_regular(path, "training settings", limit=LARGEST), where=str(path))
        digest, data = before["digest"], before["data"]
        fingerprint, evaluation = before.get("fingerprint", ""), before.get("evaluation", "")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} must be what slimbit train wrote, got {error!r}") from error
    if not (folder / CHECKPOINT).exists():  # nothing is trained yet: what was given first may have been wrong
        _write_json(path, said)
        return said, ""
    if not (folder / EPOCHS).exists():
        raise InputError(f"{folder / EPOCHS} must exist beside {CHECKPOINT}, got no such file")
    if digest != said["digest"]:
        differing = _differing(before.get("config") or {}, said["config"])
        raise InputError(f"run {folder} must be continued with its own settings, got another {', '.join(differing)}")
    if data != label.data:
        raise InputError(f"run {folder} must be continued with its data {data!r}, got {label.data!r}")
    if fingerprint and label.fingerprint and fingerprint != label.fingerprint:
        raise InputError(
            f"run {folder} must be continued with its images, normalization, weights and pruning, "
            "got others of the same name"
        )
    if evaluation and label.evaluation and evaluation != label.evaluation:
        raise InputError(
            f"run {folder} must be continued with its held-out and test images and their labels, "
            "got others of the same name"
        )
    return {**before, **({"config": said["config"]} if "config" not in before else {})}, _changed_versions(before)


def _changed_versions(before: Mapping[str, Any]) -> str:
    """What a run began with and is not continued with, as a sentence; "" where nothing has changed."""
    environment = before.get("environment")
    known = {"slimbit": before.get("slimbit"), **(environment if isinstance(environment, Mapping) else {})}
    now = {"slimbit": version("slimbit"), **_environment()}
    changed = [f"{name} {known[name]} (now {now[name]})" for name in now if known.get(name) not in (None, now[name])]
    return f"the run began with {', '.join(changed)}: its last digits may depend on that" if changed else ""


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} ({now.get(key)} instead of {before.get(key)})"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ] or ["version's settings"]


class _Log:
    """Keeps what an epoch gave, called before its checkpoint is written: a stopped epoch is written again."""

    def __init__(
        self, folder: Path, config: TrainConfig, also: Callable[[TrainEpoch, EpochSignal, nn.Module], None] | None
    ) -> None:
        self.folder, self.config, self.also = folder, config, also
        self.epochs = list(read_epochs(folder / EPOCHS).values())
        self._signal = JsonLinesWriter(folder / SIGNAL)

    def __call__(self, epoch: TrainEpoch, signal: EpochSignal, model: nn.Module) -> None:
        self.epochs = [*(before for before in self.epochs if before.epoch < epoch.epoch), epoch]
        lines = "".join(canonical(line).decode() + "\n" for line in self.epochs)
        write_whole(self.folder / EPOCHS, lines.encode())
        self._signal(signal)
        if self.config.keep_weights:
            card = {"description": f"after epoch {epoch.epoch} of {self.config.epochs}"}
            _write_weights(self.folder / WEIGHTS / f"epoch-{epoch.epoch:03d}.safetensors", model, card)
        if self.also is not None:
            self.also(epoch, signal, model)


def _card(label: RunLabel, result: TrainResult) -> dict[str, Any]:
    scored = {} if result.test_accuracy is None else {"accuracy": result.test_accuracy}
    return {**label.card, **scored}


def _write_weights(path: Path, model: nn.Module, card: Mapping[str, Any]) -> None:
    tensors = {name: plain(tensor) for name, tensor in model.state_dict().items()}
    write_whole(path, save(tensors, metadata={"slimbit": canonical(card).decode()}))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_whole(path, json_file(value))


def _environment() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }
