"""How much the loss cares for each filter's weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Sensitivity:
    """Label-free Fisher diagonal, averaged over the weights of each filter.

    Attributes:
        filters: By layer name, one mean squared gradient per filter (squared nats per squared weight).
        images: Number of images it was measured on.
        likelihood: "categorical" or "gaussian": which model the labels were sampled from.
    """

    filters: Mapping[str, tuple[float, ...]]
    images: int
    likelihood: str = "categorical"

    def layer(self, name: str) -> float:
        """Mean over the layer's weights; ``KeyError`` if the layer was not measured."""
        values = self.filters[name]
        return sum(values) / len(values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Sensitivity":
        """What `to_dict` wrote.

        >>> s = Sensitivity({"fc": (1.0, 3.0)}, 500)
        >>> Sensitivity.from_dict(s.to_dict()) == s, s.layer("fc")
        (True, 2.0)
        """
        filters = {name: tuple(float(v) for v in values) for name, values in data["filters"].items()}
        return cls(filters, int(data["images"]), str(data["likelihood"]))
