"""Settings of a frontier that is learned: one training while the price of cost rises."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from slimbit.records.codec import ConfigTable
from slimbit.records.training import OwnSettings, TrainConfig, check_said_once, with_own_settings


class LearnConfig(ConfigTable):
    """One training that yields a whole frontier: the price rises from epoch to epoch, and points are taken on the way.

    Attributes:
        epochs: Passes over the training images, for all points together.
        learning_rate: Constant; points are averages over the last iterations.
        distill: Whether it learns the outputs of the given network instead of labels; labels are then not needed.
        temperature: Of distillation.
        average: Share of the running average of weights and steps that one step leaves, 0 = no average.
        train: Any other setting of the training.

    >>> LearnConfig(epochs=4).training().schedule.name
    'constant'
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 20
    learning_rate: Annotated[float, Field(gt=0)] = 0.02
    distill: bool = False
    temperature: Annotated[float, Field(gt=0)] = 1.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.995
    train: OwnSettings = TrainConfig()

    @model_validator(mode="after")
    def _once(self) -> Self:
        check_said_once(self.train, "learning")
        return self

    def training(self, **more: Any) -> TrainConfig:
        """The settings of the training as a whole: no weight decay, which would shrink steps and weights alike.

        Args:
            more: Put over everything, e.g. a seed.
        """
        begin: dict[str, Any] = {
            "epochs": self.epochs,
            "select": "last",
            "optimizer": {"learning_rate": self.learning_rate, "nesterov": True, "weight_decay": 0.0},
            "schedule": {"name": "constant"},
            **more,
        }
        return with_own_settings(begin, self.train)
