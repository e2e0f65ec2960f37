"""Losses besides plain cross entropy."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimbit.numerics.copies import copied
from slimbit.records.errors import InputError
from slimbit.train.task import Objective


def distillation(teacher: nn.Module, *, temperature: float = 2.0) -> Objective:
    """Learn another network's outputs instead of labels: ``T^2 KL(softmax(t / T) || softmax(s / T))``, batch mean.

    With t and s the logits of teacher and student and T the temperature (Hinton, Vinyals, Dean 2015,
    arXiv 1503.02531); the factor keeps the size of the gradient at any temperature.

    Args:
        teacher: The original network; a copy of it is used, in evaluation mode, and follows the images' device.
        temperature: Above 1 the small outputs count more.

    Raises:
        InputError: The temperature is not positive.

    >>> net = nn.Linear(3, 2)
    >>> loss = distillation(net)(net, torch.ones(4, 3), None)
    >>> bool(loss.abs() < 1e-6)
    True
    """
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature!r}")
    frozen = copied(teacher).eval().requires_grad_(requires_grad=False)

    def objective(model: nn.Module, images: Tensor, _labels: Tensor | None) -> Tensor:
        with torch.no_grad():
            wanted = frozen.to(images.device)(images).float() / temperature
        given = model(images).float() / temperature
        divergence = F.kl_div(given.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")
        return divergence * temperature**2

    return objective
