"""Pruned weights held at zero while the network trains on."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError


def held_at_zero(masks: Mapping[str, Tensor]) -> Callable[[nn.Module], None]:
    """A function for `slimbit.training.task.TrainTask.after_step` that puts pruned weights back to zero.

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
        parameters = dict(model.named_parameters(remove_duplicate=False))  # a tied one by all of its names
        for name, mask in masks.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                raise InputError(f"masks must be of parameters of the network, got {name!r} of {tuple(mask.shape)}")
            with torch.no_grad():
                parameters[name].mul_(mask.to(parameters[name].device))

    return hold
