"""What a network is to learn, and what happens around it while it does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat

from torch import Tensor, nn

from slimbit.records.signal import EpochSignal
from slimbit.records.training import TrainEpoch
from slimbit.training.images import TrainImages

Objective = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
"""From network, images and labels to the loss of one batch."""
Score = Callable[[nn.Module], SupportsFloat]


class Regularizer(Protocol):
    """What adds to the loss and changes from epoch to epoch, such as `slimbit.training.admm.Admm`."""

    def penalty(self, model: nn.Module) -> Tensor:
        """To be added to the loss of every batch."""

    def end_epoch(self, model: nn.Module, epoch: int) -> None:
        """Called in every process after each epoch, counted from 1."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that continues it exactly."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """What `state_dict` gave."""


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """News from a run.

    Attributes:
        epoch: Epoch under way, from 1.
        epochs: Of the whole run.
        step: Steps done in this epoch.
        steps: Steps of an epoch.
        loss: Mean loss of this epoch so far.
        finished: The epoch's result, where it has just ended.
        signal: Its signal and noise.
        message: What the reader of the results should know; the numbers are those of the moment.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    finished: TrainEpoch | None = None
    signal: EpochSignal | None = None
    message: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainTask:
    """What is to be learned, and what happens around it.

    Attributes:
        images: What to learn from.
        validate: From the network to percent on held-out images; None = there are none.
        objective: The loss; default: cross entropy with the label smoothing of the settings.
        regularizer: Adds to the loss.
        example_input: One example with its batch dimension, for the positions that ESN_a needs.
        after_step: Called with the network after every optimizer step, e.g. to hold pruned weights at zero.
        listener: Called with every `TrainingProgress`; only in the first process.
        epoch_done: Called with result, signal and network after each epoch, before the checkpoint; first process only.
    """

    images: TrainImages
    validate: Score | None = None
    objective: Objective | None = None
    regularizer: Regularizer | None = None
    example_input: Any = None
    after_step: Sequence[Callable[[nn.Module], None]] = ()
    listener: Callable[[TrainingProgress], None] | None = None
    epoch_done: Callable[[TrainEpoch, EpochSignal, nn.Module], None] | None = None
