"""The levels of one layer: what a quantized weight is, from the policy's plan to the artifact on disk."""

from dataclasses import dataclass

from torch import Tensor

from slimbit.numerics.grid import to_weights
from slimbit.records.config import Grid


@dataclass(frozen=True)
class LayerLevels:
    """One quantized layer.

    Attributes:
        levels: Filters first, on the grid; 0 where a weight is pruned.
        steps: Positive; scalar, or shape ``(filters,)``.
        grid: Grid of the levels.
        bits: Declared width, where a file says one; 0 = none, then it is what the levels need.
        signal_to_noise: ``||W||^2 / ||W - step * levels||^2`` over the kept filters, inf where nothing was lost; None
            where the weights behind the levels are not known.
        error: ``tr((W - V) H (W - V)^T) / tr(W H W^T)``, relative output error; None without calibration.
    """

    levels: Tensor
    steps: Tensor
    grid: Grid
    bits: int = 0
    signal_to_noise: float | None = None
    error: float | None = None

    def weights(self) -> Tensor:
        """``step * levels`` in the type of the steps."""
        return to_weights(self.levels.to(self.steps.dtype), self.steps)
