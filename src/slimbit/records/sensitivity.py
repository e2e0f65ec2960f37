"""How much the loss cares for each filter's weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from slimbit.records.codec import strict


@dataclass(frozen=True)
@strict
class Sensitivity:
    """Label-free Fisher diagonal, averaged over the weights of each filter.

    Attributes:
        filters: By layer name, one mean squared gradient per filter (squared nats per squared weight).
        images: Number of images it was measured on.
        likelihood: "categorical" or "gaussian": which model the labels were sampled from.
        temperature: What logits were divided by: 1, or more for a network that is certain of every answer, see
            `slimbit.measure.sensitivity.measure_sensitivity`.

    >>> Sensitivity({"fc": (1.0, 3.0)}, 500).layer("fc")
    2.0
    """

    filters: Mapping[str, tuple[float, ...]]
    images: int
    likelihood: str = "categorical"
    temperature: float = 1.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What users should know, in words."""
        if self.temperature == 1:
            return ()
        note = (
            f"the network is certain of its answers on all {self.images} calibration images, so labels sampled from it "
            f"say nothing about its weights: the sensitivity was measured with outputs divided by "
            f"{self.temperature:.3g}, and a price is in nats of those"
        )
        return (note,)

    def layer(self, name: str) -> float:
        """Mean over the layer's weights; ``KeyError`` if the layer was not measured."""
        values = self.filters[name]
        return sum(values) / len(values)
