"""What a pruned network learns with: images and labels of a data set, and the settings of its training."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from slimbit.compress.prepared import PreparedNetwork
from slimbit.numerics.batches import zeros_like_input
from slimbit.records.config import ADMM_STAGES, TuneConfig
from slimbit.records.errors import InputError
from slimbit.records.training import TrainConfig
from slimbit.training.admm import Admm, AdmmSettings, Choose
from slimbit.training.images import TrainImages
from slimbit.training.objectives import distillation
from slimbit.training.run import RunLabel, train_network
from slimbit.training.task import TrainingProgress, TrainTask
from slimbit.zoo.data import DataSet, Evaluator, Part
from slimbit.zoo.data.splits import balanced_order

TrainingData = DataSet | TrainTask
Report = Callable[[str], None]


@dataclass(frozen=True)
class TrainingSplit:
    """A data set divided for a training.

    Attributes:
        images: What to learn from.
        validate: From a network to percent on held-out training images; None = none are held out.
        test: The same on the test images.
        held: Number of images that are held out.
    """

    images: TrainImages
    validate: Evaluator | None
    test: Evaluator
    held: int


def training_split(config: TrainConfig, data: DataSet, *, labelled: bool = True) -> TrainingSplit:
    """Training images, and held-out ones to watch and to choose the epoch by.

    Args:
        config: How many are held out and how many are used.
        data: Where images come from.
        labelled: Whether labels are needed; without them nothing is held out.

    Raises:
        InputError: Fewer images than asked for, or no labels where they are needed.
    """
    labels = data.train.labels
    if labels is None and labelled:
        raise InputError(
            f"training images of {data.name} must have labels, got none: give data with training labels, such as "
            "npz:FILE, or distill=True where a compressed network is trained"
        )
    there = len(data.train.images)
    held = there // 10 if config.validation_images is None else config.validation_images
    held = 0 if labels is None else held
    if held >= there:
        raise InputError(f"validation_images must be fewer than the {there} training images of {data.name}, got {held}")
    used = there - held if config.train_images is None else config.train_images
    if used > there - held:
        raise InputError(
            f"train_images must be at most the {there - held} training images of {data.name} that are not held out, "
            f"got {used}"
        )
    order = np.arange(held + used) if labels is None else balanced_order(labels)
    images = TrainImages(
        pixels=data.train.images,
        labels=labels,
        mean=data.normalization.mean,
        std=data.normalization.std,
        full_scale=data.full_scale,
        chosen=order[held : held + used],
    )
    validate = None
    if held and labels is not None:
        part = Part(data.train.images[order[:held]], labels[order[:held]])
        validate = replace(data, name=f"{data.name} held out", test=part).evaluator(batch_size=250)
    return TrainingSplit(images, validate, data.evaluator(batch_size=250), held)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A training that goes with pruning.

    Attributes:
        task: Images, labels, held-out images, example.
        config: Settings of the training after the cut.
        tune: Distillation, and the stages of ADMM.
        data: Name of the data; a run is continued with the same one only.
    """

    task: TrainTask
    config: TrainConfig
    tune: TuneConfig
    data: str = ""

    @property
    def admm(self) -> AdmmSettings:
        """Stages of driving filters to zero before the cut, where that is asked for."""
        return AdmmSettings(stages=ADMM_STAGES, epochs_per_stage=self.tune.admm_epochs)

    @property
    def name(self) -> str:
        """Everything that the result depends on, for people; an objective of one's own must be named by ``data``."""
        images = self.task.images.fingerprint()[:12]
        text = f"{self.data} {images}, {self.config.epochs} epochs of settings {self.config.digest()[:12]}"
        return f"{text}{', distilled' * self.tune.distill}, ADMM {self.admm} at {self.tune.admm_learning_rate:g}"

    def tune_network(
        self, network: nn.Module, *, original: nn.Module, content: str, folder: Path, progress: Report
    ) -> None:
        """Train ``network`` itself, in a folder; a call that was stopped goes on there."""
        self._run(
            network,
            self._task(original),
            self.config,
            folder,
            content=content,
            progress=lambda p: progress(f"tuning: {_line(p)}"),
        )

    def train_admm(
        self,
        network: nn.Module,
        choose: Choose,
        *,
        original: nn.Module,
        content: str,
        folder: Path,
        progress: Report,
    ) -> tuple[float, ...]:
        """Train ``network`` itself with `Admm` until what ``choose`` does not keep is nearly zero.

        Returns:
            Residual after each epoch, see `Admm`.
        """
        settings = self.admm
        admm = Admm(network, choose, settings)
        config = self.config.with_options(
            {
                "epochs": settings.epochs,
                "select": "last",
                "optimizer": {"learning_rate": self.tune.admm_learning_rate},
                "schedule": {"name": "one_cycle", "warm_up": (ADMM_STAGES - 1) / ADMM_STAGES, "milestones": ()},
            }
        )

        def line(now: TrainingProgress) -> None:
            if now.message:
                progress(f"ADMM: {now.message}")
                return
            progress(f"ADMM, rho {settings.rho(now.epoch):g}: {_line(now)}, residual {admm.residuals[-1]:.4f}")

        task = replace(self._task(original), regularizer=admm)
        self._run(network, task, config, folder, content=content, progress=line)
        return tuple(admm.residuals)

    def _task(self, original: nn.Module) -> TrainTask:
        return replace(self.task, objective=distillation(original)) if self.tune.distill else self.task

    def _run(
        self,
        network: nn.Module,
        task: TrainTask,
        config: TrainConfig,
        folder: Path,
        *,
        content: str,
        progress: Callable[[TrainingProgress], None],
    ) -> None:
        def listen(now: TrainingProgress) -> None:
            if now.finished is not None or now.message:
                progress(now)

        held_out = getattr(task.validate, "digest", "")
        label = RunLabel(data=self.data, fingerprint=content, evaluation=held_out)
        train_network(network, replace(task, listener=listen), config, folder, label=label)
        network.eval()


def tuning_for(tune: TuneConfig, data: TrainingData | None, prepared: PreparedNetwork) -> Tuning:
    """The training that settings ask for, on this data.

    Raises:
        InputError: No data, or data without labels where they are needed.
    """
    config = tune.training(**settings_of(prepared))
    task, name = task_of(data, config, labelled=not tune.distill, purpose="tune the pruned network")
    return Tuning(task=task, config=config, tune=tune, data=name)


def settings_of(prepared: PreparedNetwork) -> dict[str, Any]:
    """Settings of a training that follow from the network."""
    return {"seed": prepared.seed % (1 << 32), "network": prepared.origin.source or None}


def task_of(data: TrainingData | None, config: TrainConfig, *, labelled: bool, purpose: str) -> tuple[TrainTask, str]:
    """What is learned from data, and the name of the data.

    Args:
        data: Where images come from.
        config: How many are held out and how many are used.
        labelled: Whether labels are needed.
        purpose: What data are for, to say where there are none.

    Raises:
        InputError: No data, or data without labels where they are needed.
    """
    if data is None:
        raise InputError(f"data must be given to {purpose}, e.g. slimbit.open_data(...), got none")
    if isinstance(data, TrainTask):
        return data, "the caller's own"
    split = training_split(config, data, labelled=labelled)
    example = zeros_like_input(data.input_shape).clone()
    return TrainTask(images=split.images, validate=split.validate, example_input=example), data.name


def _line(now: TrainingProgress) -> str:
    if now.message:
        return now.message
    done = now.finished
    assert done is not None, "the caller asked"
    held = "" if done.accuracy is None else f", held out {done.accuracy:.2f} %"
    return f"epoch {now.epoch}/{now.epochs}, loss {done.loss:.4f}{held}, {done.seconds:.0f} s"
