"""Train a network on a data set, with its signal-to-noise ratio in view."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from slimbit.compress.tuning import TrainingData, training_split
from slimbit.numerics.batches import zeros_like_input
from slimbit.records.training import TrainConfig
from slimbit.training.run import RunLabel, TrainResult, train_network
from slimbit.training.task import TrainingProgress, TrainTask


def train(
    model: nn.Module,
    data: TrainingData,
    *,
    out: str | Path,
    config: TrainConfig | None = None,
    fingerprint: str = "",
    after_step: Callable[[nn.Module], None] | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> TrainResult:
    """Train ``model`` itself and keep everything in a folder; the same call continues a run that was stopped.

    It trains on a GPU if there is one, and at the end is on the device on which it was given. The folder holds the
    trained weights (``model.safetensors``), what each epoch gave, and signal and noise of the weights by epoch, which
    `slimbit.read_training_run` reads.

    Args:
        model: Changed: at the end it holds the chosen weights.
        data: A data set of `slimbit.open_data`, a tenth of whose training images is held out to choose the epoch by;
            or, for a loss or images of one's own, a `slimbit.training.task.TrainTask`.
        out: Folder, new or of the same run.
        config: Settings.
        fingerprint: Of anything else that must be the same when the run is continued, e.g. of the first weights.
        after_step: Called with the network after every optimizer step.
        progress: Called with every message of the training.

    Raises:
        InputError: Settings that do not fit images or folder, a run with other settings, a damaged checkpoint.
        TrainingError: The loss is no finite number any more.
        StoreError: Something cannot be written; the last checkpoint is whole.

    >>> import slimbit, tempfile
    >>> network, data = slimbit.network("digits_resnet"), slimbit.open_data("digits")
    >>> run = slimbit.train(network, data, out=tempfile.mkdtemp(), config=TrainConfig(epochs=1, train_images=256))
    >>> len(run.epochs), 0 <= run.test_accuracy <= 100
    (1, True)
    """
    settings = config or TrainConfig()
    if isinstance(data, TrainTask):
        task, label = data, RunLabel(fingerprint=fingerprint)
    else:
        split = training_split(settings, data)
        task = TrainTask(
            images=split.images, validate=split.validate, example_input=zeros_like_input(data.input_shape).clone()
        )
        norm = data.normalization
        chosen = " to choose the epoch" if settings.select == "best" else ""
        begun = f", from {Path(settings.weights).name}" if settings.weights else ""
        card: dict[str, Any] = {
            **({"network": settings.network} if settings.network else {}),
            "normalize": {"mean": list(norm.mean), "std": list(norm.std)} if norm.name == "custom" else norm.name,
            "classes": split.test.outputs(model),
            **({"held_out": split.held} if split.held else {}),
            "description": f"slimbit train {settings.network or type(model).__name__}, {settings.epochs} epochs of "
            f"{len(split.images)} images of {data.name}, {split.held} others held out{chosen}, "
            f"seed {settings.seed}{begun}",
        }
        prints = f"{split.images.fingerprint()} {fingerprint}".strip()
        scored = [part.digest for part in (split.validate, split.test) if part is not None]
        label = RunLabel(card=card, data=data.name, fingerprint=prints, evaluation=" ".join(scored), test=split.test)
    if after_step is not None:
        task = replace(task, after_step=(*task.after_step, after_step))
    if progress is not None:
        task = replace(task, listener=progress)
    return train_network(model, task, settings, out, label=label)
