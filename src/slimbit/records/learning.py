"""Settings of a frontier that is learned: one training while the price of cost rises."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from slimbit.records.codec import ConfigTable
from slimbit.records.training import OwnSettings, TrainConfig, check_said_once, with_own_settings


class LearnConfig(ConfigTable):
    """One training that yields a whole frontier: the price rises from point to point.

    Attributes:
        epochs: Passes over the training images, for all points together.
        points: Points to take, evenly spread over log cost.
        learning_rate: At the beginning of each point's part of the training; falls to zero along a cosine.
        distill: Whether it learns the outputs of the given network instead of labels; labels are then not needed.
        temperature: Of distillation.
        train: Any other setting of the training.

    >>> LearnConfig(epochs=4).training().schedule.name
    'cosine'
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 20
    points: Annotated[int, Field(ge=1, le=1000)] = 8
    learning_rate: Annotated[float, Field(gt=0)] = 0.04
    distill: bool = False
    temperature: Annotated[float, Field(gt=0)] = 1.0
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
            "schedule": {"name": "cosine"},
            **more,
        }
        return with_own_settings(begin, self.train)
