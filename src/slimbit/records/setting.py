"""What turned the knob of a compressed network: a bit width, a price, a training epoch, a multiple of sigma."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from slimbit.records.codec import strict
from slimbit.records.errors import InputError


@dataclass(frozen=True)
@strict
class Bits:
    """Equal bit widths everywhere; policy ``max_abs``.

    Attributes:
        value: Bit width; fractions make a smooth sweep.
    """

    value: float
    kind: Literal["bits"] = "bits"

    def __str__(self) -> str:
        return f"{self.value:g} bits"


@dataclass(frozen=True)
@strict
class Price:
    """A price: the loss (nats) one is willing to pay per unit of cost; policy ``optimal``.

    Attributes:
        value: Positive.
        metric: Cost metric that it is for.
    """

    value: float
    metric: str
    kind: Literal["price"] = "price"

    def __post_init__(self) -> None:
        if not 0 < self.value < float("inf"):
            raise InputError(f"price must be a positive number, got {self.value!r}")

    def __str__(self) -> str:
        return f"price {self.value:.3g}"


@dataclass(frozen=True)
@strict
class Epoch:
    """A training epoch whose signal-to-noise ratio gave the steps; policy ``signal``.

    Attributes:
        value: Counted from 1.
    """

    value: int
    kind: Literal["epoch"] = "epoch"

    def __str__(self) -> str:
        return f"epoch {self.value}"


@dataclass(frozen=True)
@strict
class Sigma:
    """Steps of so many standard deviations; policy ``sigma``.

    Attributes:
        value: Positive.
    """

    value: float
    kind: Literal["sigma"] = "sigma"

    def __str__(self) -> str:
        return f"k = {self.value:g}"


LEARNED = "learned"
"""Policy of points that one training has passed while its price rose."""


@dataclass(frozen=True)
@strict
class Learned:
    """A place in a training whose price rises; policy ``learned``.

    Attributes:
        value: Epochs that had passed.
        epochs: Epochs of the whole training.
        price: Loss per unit of cost at that moment.
        metric: Cost metric that it is for.
    """

    value: float
    epochs: int
    price: float
    metric: str
    kind: Literal["learned"] = "learned"

    def __str__(self) -> str:
        return f"{self.value:.3g} of {self.epochs} epochs"


Setting = Annotated[Bits | Price | Epoch | Sigma | Learned, Field(discriminator="kind")]
"""What turned the knob; its text for people is ``str(setting)``, and nothing reads that back."""
