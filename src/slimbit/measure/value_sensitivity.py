"""How much the loss cares for the rounding of values between layers, without labels.

A change ``e`` of a value with ``d`` entries costs ``1/2 E (g . e)^2`` to second order, with the gradient ``g`` of the
log-likelihood of labels that are *sampled from the model itself* (the Fisher matrix stands for the curvature). Errors
of different entries are taken for independent: ``1/2 E sum_i g_i^2 e_i^2``. The product is averaged, not each factor:
entries that a ReLU has cut have no error, and gradients of their own.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.measure.sensitivity import Likelihood, likelihood_of, outputs_of
from slimbit.numerics.activation_range import rounded
from slimbit.numerics.batches import Forward, call_network, checked_batches, count_of, pieces
from slimbit.numerics.strided import safe_gradients
from slimbit.records.activations import ActivationQuantizer

Watched = Callable[[Callable[[str, Tensor], Tensor]], nn.Module]
"""From a function that sees every value by name, and returns what the network goes on with, to such a network."""


def measure_value_losses(
    watched: Watched,
    candidates: Mapping[str, tuple[ActivationQuantizer, ...]],
    batches: Iterable[Any],
    *,
    generator: torch.Generator,
    likelihood: Likelihood | str = "categorical",
    images_per_pass: int = 4,
    forward: Forward = call_network,
) -> dict[str, tuple[float, ...]]:
    """Predicted loss of rounding each value, alone, by each of its quantizers.

    Args:
        watched: Makes a float network whose values can be seen.
        candidates: Quantizers to compare by the name of the value.
        batches: Unlabelled images.
        generator: Samples the labels; on the CPU.
        likelihood: As in `slimbit.measure.sensitivity.measure_sensitivity`.
        images_per_pass: Images that share one backward pass.
        forward: How to call the network on a batch.

    Returns:
        Nats per image, in the order of the candidates; 0 where the outputs do not depend on a value.
    """
    sample = likelihood_of(likelihood)
    met: list[tuple[str, Tensor]] = []

    def watch(name: str, value: Tensor) -> Tensor:
        if name not in candidates:
            return value
        own = value if value.requires_grad else value.detach().requires_grad_()
        met.append((name, own))
        return own

    network = watched(watch)
    total = {name: torch.zeros(len(found), dtype=torch.float64) for name, found in candidates.items()}
    images = 0
    with torch.enable_grad(), safe_gradients(network):
        for piece in pieces(checked_batches(batches), images_per_pass):
            images += count_of(piece)
            met.clear()
            loss = sample(outputs_of(network, piece, forward), generator)
            if not loss.requires_grad:
                continue
            values = [value for _, value in met]
            for (name, value), grad in zip(met, torch.autograd.grad(loss, values, allow_unused=True), strict=True):
                if grad is not None:
                    total[name] += _losses(value.detach(), grad, candidates[name])
    return {name: tuple((found / images).tolist()) for name, found in total.items()}


def _losses(value: Tensor, grad: Tensor, candidates: tuple[ActivationQuantizer, ...]) -> Tensor:
    power = grad.square()
    losses = []
    for quantizer in candidates:
        low, high = (code - quantizer.zero_point for code in (quantizer.low, quantizer.high))
        error = rounded(value, quantizer.step, low=low, high=high) - value
        losses.append(0.5 * float((power * error.square()).sum(dtype=torch.float64)))
    return torch.tensor(losses, dtype=torch.float64)
