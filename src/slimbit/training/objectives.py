"""Losses besides plain cross entropy."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimbit.numerics.copies import copied
from slimbit.records.errors import InputError
from slimbit.training.task import Objective


def distillation(teacher: nn.Module, *, temperature: float = 2.0) -> Objective:
    """Learn another network's outputs instead of labels: ``T^2 KL(softmax(t / T) || softmax(s / T))``, batch mean.

    With t and s the logits of teacher and student and T the temperature (Hinton, Vinyals, Dean 2015,
    arXiv 1503.02531); the factor keeps the size of the gradient at any temperature.

    Args:
        teacher: The original network; a copy of it is used, in evaluation mode, and follows the images' device.
        temperature: Above 1 the small outputs count more.

    Raises:
        InputError: The temperature is not positive, or, from the function, outputs other than one tensor of logits,
            shape ``(images, classes, ...)`` with two classes or more.

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
            wanted = _logits(frozen.to(images.device)(images)) / temperature
        given = _logits(model(images)) / temperature
        divergence = F.kl_div(given.log_softmax(1), wanted.log_softmax(1), log_target=True, reduction="batchmean")
        return divergence * temperature**2

    return objective


def _logits(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.ndim < 2 or outputs.shape[1] < 2:
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(f"outputs must be one tensor of logits of two classes or more to be distilled, got {got}")
    return outputs.float()
