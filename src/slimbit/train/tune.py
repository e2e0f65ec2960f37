"""Training that follows pruning: the paper's recipes for any number of epochs, and weights held at zero."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError
from slimbit.records.training import TrainConfig

SHORT = 40
"""Up to so many epochs the learning rate falls in two steps, as in the paper's 4 epochs; beyond along a cosine."""


def tune_config(epochs: int, *, learning_rate: float = 0.1, **more: object) -> TrainConfig:
    """Settings to recover after pruning, after HkxAS6VFDB.

    A few epochs: batch 64, the learning rate divided by 10 after half and after three quarters of the epochs (its
    ImageNet setting is 4 epochs, divided at 2 and 3). More than 40: batch 100 and a cosine (its 160 epochs).

    Args:
        epochs: How many.
        learning_rate: At the beginning; the paper's 0.1.
        more: Any other setting of `TrainConfig`.

    >>> tune_config(4).schedule.milestones, tune_config(1).schedule.milestones, tune_config(160).schedule.name
    ((2, 3), (), 'cosine')
    """
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise InputError(f"tune_epochs must be a whole number of 1 or more, got {epochs!r}")
    milestones = sorted({epochs // 2, epochs * 3 // 4} - {0})
    short = {"batch_size": 64, "schedule": {"name": "step", "milestones": milestones}}
    long = {"batch_size": 100, "schedule": {"name": "cosine"}}
    chosen = short if epochs <= SHORT else long
    return TrainConfig(epochs=epochs, optimizer={"learning_rate": learning_rate}, **{**chosen, **more})  # type: ignore[arg-type] # pydantic checks them


def held_at_zero(masks: Mapping[str, Tensor]) -> Callable[[nn.Module], None]:
    """A function for `slimbit.TrainTask.after_step` that puts pruned weights back to zero.

    Args:
        masks: By parameter name, True = stays; e.g. of `slimbit.apply.mask.held_masks`.

    Raises:
        InputError: From the function, for a network without such a parameter.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> held_at_zero({"weight": torch.tensor([[True, False]])})(net)
    >>> (net.weight != 0).tolist()
    [[True, False]]
    """

    def hold(model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        for name, mask in masks.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                raise InputError(f"masks must be of parameters of the network, got {name!r} of {tuple(mask.shape)}")
            with torch.no_grad():
                parameters[name].mul_(mask.to(parameters[name].device))

    return hold
