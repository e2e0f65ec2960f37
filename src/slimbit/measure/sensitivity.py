"""How much the loss cares for each weight, without labels: the Fisher diagonal of the network's own predictions.

``s_i = E_x E_{y ~ p(y|x)} (d log p(y|x) / d w_i)^2``. Labels are *sampled from the model itself*, so none are needed
and the expected gradient of every image is zero. That lets several images share a backward pass: cross terms
vanish in the mean, ``E (sum_n g_n)^2 = sum_n E g_n^2``.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimbit.numerics.batches import Forward, call_network, checked_batches, inputs_of, pieces
from slimbit.numerics.grid import filters_first
from slimbit.numerics.moments import check_finite
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.records.sensitivity import Sensitivity

Likelihood = Callable[[Any, torch.Generator], Tensor]
"""From a network's output to ``-log p(y|x)`` summed over images, with ``y`` sampled; differentiable."""


def measure_sensitivity(
    model: nn.Module,
    spec: NetworkSpec,
    batches: Iterable[Any],
    *,
    generator: torch.Generator,
    likelihood: Likelihood | str = "categorical",
    images_per_pass: int = 4,
    forward: Forward = call_network,
) -> Sensitivity:
    """Mean squared gradient of the log-likelihood, averaged over each filter's weights.

    Args:
        model: The float network; not changed.
        spec: Its survey.
        batches: About 400 to 1000 unlabelled images.
        generator: Samples the labels; on the CPU.
        likelihood: "categorical": output ``(images, classes, ...)`` are logits. "gaussian": any tensor, unit
            variance; the choice for regression and other heads. Or a function for anything else.
        images_per_pass: Images that share one backward pass; 1 has the least variance per image.
        forward: How to call the network on a batch.

    Returns:
        One number per filter and layer; 0 where no gradient arrives.

    Raises:
        InputError: No images, an output the likelihood cannot take, or gradients that are not finite.
    """
    sample = _likelihood(likelihood)
    network = copy.deepcopy(model).eval()
    layers = [layer for layer in spec.layers if not layer.shared_with]
    weights = _weights(network, layers)
    total = [torch.zeros(layer.filters, dtype=torch.float64) for layer in layers]
    images = 0
    with torch.enable_grad():
        for piece in pieces(checked_batches(batches), images_per_pass):
            loss = sample(forward(network, piece), generator)
            grads = torch.autograd.grad(loss, weights, allow_unused=True)
            for k, (layer, grad) in enumerate(zip(layers, grads, strict=True)):
                if grad is not None:
                    total[k] += _per_filter(layer, grad)
            inputs = inputs_of(piece)
            images += len(inputs) if isinstance(inputs, Tensor) else 1
    name = likelihood if isinstance(likelihood, str) else "custom"
    return Sensitivity({x.name: tuple((t / images).tolist()) for x, t in zip(layers, total, strict=True)}, images, name)


def categorical(outputs: Any, generator: torch.Generator) -> Tensor:
    """Negative log-likelihood of labels sampled from ``softmax(outputs)``, classes along dimension 1.

    >>> float(categorical(torch.tensor([[100.0, 0.0]]), torch.Generator().manual_seed(0)))
    0.0
    """
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        raise InputError(f"output must be logits (images, classes, ...), got {_describe(outputs)}: give a likelihood")
    logits = outputs.movedim(1, -1).reshape(-1, outputs.shape[1]).float()
    check_finite(logits, "output of the network")
    labels = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=generator).reshape(-1)
    return F.cross_entropy(logits, labels.to(logits.device), reduction="sum")


def gaussian(outputs: Any, generator: torch.Generator) -> Tensor:
    """Negative log-likelihood of targets sampled from a unit Gaussian around ``outputs``, up to a constant."""
    if not isinstance(outputs, Tensor):
        raise InputError(f"output must be a tensor, got {_describe(outputs)}: give a likelihood")
    noise = torch.randn(outputs.shape, generator=generator).to(outputs)
    return 0.5 * (outputs - (outputs.detach() + noise)).square().sum()


def _likelihood(choice: Likelihood | str) -> Likelihood:
    known: dict[str, Likelihood] = {"categorical": categorical, "gaussian": gaussian}
    if callable(choice):
        return choice
    if choice not in known:
        raise InputError(f"likelihood must be categorical, gaussian or a function, got {choice!r}")
    return known[choice]


def _weights(network: nn.Module, layers: list[LayerSpec]) -> list[Tensor]:
    network.requires_grad_(requires_grad=False)
    tensors = {**dict(network.named_buffers()), **dict(network.named_parameters())}
    missing = [layer.name for layer in layers if layer.weight_key not in tensors]
    if missing:
        raise InputError(f"layers must be in the network, got no weight for {', '.join(missing)}")
    return [tensors[layer.weight_key].requires_grad_() for layer in layers]


def _per_filter(layer: LayerSpec, grad: Tensor) -> Tensor:
    part = grad[slice(*(layer.rows or (None,)))]
    rows = filters_first(part, transposed=layer.transposed, groups=layer.groups)
    check_finite(rows, f"gradient of layer {layer.name!r}")
    return rows.double().square().flatten(1).mean(1).cpu()


def _describe(outputs: Any) -> str:
    return str(tuple(outputs.shape)) if isinstance(outputs, Tensor) else type(outputs).__name__
