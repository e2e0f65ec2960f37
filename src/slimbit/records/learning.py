"""Settings of a frontier that is learned: one training while the price of cost rises."""

from typing import Annotated, Any, Self

from pydantic import Field, field_serializer, model_validator

from slimbit.records.codec import ConfigTable
from slimbit.records.errors import InputError
from slimbit.records.training import TrainConfig


class LearnConfig(ConfigTable):
    """One training that yields a whole frontier: the price rises from epoch to epoch, and points are taken on the way.

    Attributes:
        epochs: Passes over the training images, for all points together.
        learning_rate: Constant but for a short rise at the beginning; points are averages over the last steps.
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
    train: TrainConfig = TrainConfig()

    @field_serializer("train")
    def _given(self, train: TrainConfig) -> dict[str, Any]:
        """What was set: it goes over the settings that follow from the others, so defaults must not."""
        return train.model_dump(mode="json", exclude_unset=True)

    @model_validator(mode="after")
    def _once(self) -> Self:
        given = self.train.model_dump(exclude_unset=True)
        if "epochs" in given:
            raise InputError("epochs of the training's own settings must be left out: epochs of the learning says it")
        if "learning_rate" in given.get("optimizer", {}):
            raise InputError(
                "learning_rate of the training's own settings must be left out: that of the learning says it"
            )
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
        chosen: TrainConfig = TrainConfig().with_options(begin)
        config: TrainConfig = chosen.with_options(self.train.model_dump(exclude_unset=True))
        return config
