"""Settings of a training run, and what one epoch of it gave."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, model_validator

from slimbit.records.codec import ConfigTable, digest, record
from slimbit.records.errors import InputError
from slimbit.records.recipes import recipe_file

Schedule = Literal["cosine", "step", "constant", "one_cycle"]
Precision = Literal["float32", "bfloat16"]
Scale = Literal["smoke", "quick", "paper"]


class OptimizerConfig(ConfigTable):
    """Table ``[optimizer]``: stochastic gradient descent with momentum.

    Attributes:
        learning_rate: The highest of the schedule.
        momentum: 0 = none.
        nesterov: Nesterov's form of momentum.
        weight_decay: Of every parameter, as in Prune or quantize? (2019).
    """

    learning_rate: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=5e-4, ge=0, allow_inf_nan=False)


class ScheduleConfig(ConfigTable):
    """Table ``[schedule]``: see `slimbit.training.schedule.learning_rate`.

    Attributes:
        name: How the learning rate changes from step to step.
        milestones: Epochs after which "step" divides, ascending.
        factor: What "step" multiplies with.
        warm_up: Share of the steps in which "one_cycle" rises.
        cycles: How many times "cosine" falls to zero, each time from the highest rate.
    """

    name: Schedule = "cosine"
    milestones: tuple[int, ...] = Field(default=(), strict=False)
    factor: float = Field(default=0.1, gt=0, lt=1)
    warm_up: float = Field(default=0.25, gt=0, lt=1)
    cycles: int = Field(default=1, ge=1)


class AugmentConfig(ConfigTable):
    """Table ``[augment]``: what happens to training images.

    Attributes:
        crop: Pixels by which an image is moved at most, each way; black comes in at the edge. 0 = not moved; default:
            an eighth of its shorter side, so 4 for 32x32.
        flip: Whether half of the images are mirrored.
    """

    crop: int | None = Field(default=None, ge=0, le=64)
    flip: bool = True


class TrainConfig(ConfigTable):
    """Settings of ``slimbit train``; every key is optional, and every option of the command wins over the file.

    Attributes:
        network: As NETWORK on the command line.
        data: Data spec.
        weights: Weights to start from; default: random ones.
        input: Shape of one input, ``3x32x32``.
        scale: "smoke", "quick" or "paper", for a recipe of the package.
        epochs: Passes over the training images.
        batch_size: Images per optimizer step, over all processes and all accumulated parts.
        accumulate: Parts that a batch is cut into, one after the other, to save memory.
        validation_images: Training images held out to watch and to choose the epoch by; default: a tenth.
        train_images: Training images to use; default: all that are not held out.
        seed: Of initial weights, order and augmentation.
        precision: Of forward and backward pass; weights and optimizer stay float32.
        compile: Whether `torch.compile` translates the network.
        channels_last: Memory layout of images and weights.
        label_smoothing: Share of the target that goes to all classes alike.
        select: Which epoch's weights are the result: the "best" on held-out images, or the "last".
        keep_weights: Whether the weights of every epoch are kept.
        optimizer: Learning rate, momentum, weight decay.
        schedule: How the learning rate changes.
        augment: What happens to training images.

    >>> config = TrainConfig(epochs=3, optimizer={"learning_rate": 0.05})
    >>> config.optimizer.learning_rate, config.optimizer.momentum
    (0.05, 0.9)
    """

    network: str | None = None
    data: str | None = None
    weights: str | None = None
    input: str | None = None
    scale: Scale | None = None
    epochs: int = Field(default=30, ge=1, le=100_000)
    batch_size: int = Field(default=128, ge=1)
    accumulate: int = Field(default=1, ge=1)
    validation_images: int | None = Field(default=None, ge=0)
    train_images: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    precision: Precision = "float32"
    compile: bool = False
    channels_last: bool = True
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    select: Literal["best", "last"] = "best"
    keep_weights: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _together(self) -> "TrainConfig":
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size must be a multiple of accumulate, got {self.batch_size}, {self.accumulate}")
        milestones = self.schedule.milestones
        if list(milestones) != sorted(set(milestones)) or any(epoch < 1 for epoch in milestones):
            raise ValueError(f"schedule.milestones must be rising epochs from 1, got {milestones}")
        if self.optimizer.nesterov and not self.optimizer.momentum:
            raise ValueError("optimizer.momentum must be above 0 for nesterov, got 0")
        return self

    @classmethod
    def from_recipe(cls, name: str) -> "TrainConfig":
        """Settings that come with Slimbit, as ``slimbit train --recipe``.

        Raises:
            InputError: There is no such recipe; the message names those there are.

        >>> TrainConfig.from_recipe("fig2-paper").epochs
        160
        """
        return cls.from_toml(recipe_file(name))

    def digest(self) -> str:
        """SHA-256 of everything that the trained weights depend on."""
        fixed = self.model_dump(mode="json", exclude={"keep_weights", "scale", "weights", "data", "input"})
        return digest(fixed)


def check_said_once(train: TrainConfig, what: str) -> None:
    """Raise `InputError` where the own settings of a training say what that which it is a part of says.

    Args:
        train: The own settings.
        what: The part: "tuning" or "learning".
    """
    given = _given(train)
    for name, there in (("epochs", given), ("learning_rate", given.get("optimizer", {}))):
        if name in there:
            said = f"{name} of the {what}" if name == "epochs" else f"that of the {what}"
            raise InputError(f"{name} of the training's own settings must be left out: {said} says it")


def _given(train: TrainConfig) -> dict[str, Any]:
    """What was set: it goes over the settings that follow from the others, so defaults must not."""
    return train.model_dump(mode="json", exclude_unset=True)


OwnSettings = Annotated[TrainConfig, PlainSerializer(_given)]
"""Any further settings of a training that is a part of something; see `check_said_once`."""


def with_own_settings(begin: Mapping[str, Any], own: TrainConfig) -> TrainConfig:
    """The settings of such a training as a whole.

    Args:
        begin: What follows from what it is a part of.
        own: Put over it, as far as it was set.
    """
    config: TrainConfig = TrainConfig().with_options(begin).with_options(own.model_dump(exclude_unset=True))
    return config


@record
class TrainEpoch:
    """One line of ``epochs.jsonl``.

    Attributes:
        epoch: Counted from 1.
        loss: Mean over the steps of the epoch.
        accuracy: On the held-out images; None where there are none.
        learning_rate_first: Of the first step.
        learning_rate_last: Of the last step.
        iterations: Optimizer steps.
        seconds: Wall time of training and scoring.
        signal_to_noise: Of all tracked weights together; None where they did not move.
    """

    epoch: int
    loss: float
    accuracy: float | None
    learning_rate_first: float
    learning_rate_last: float
    iterations: int
    seconds: float
    signal_to_noise: float | None
