"""How much the loss cares for each weight, without labels: the Fisher diagonal of the network's own predictions.

``s_i = E_x E_{y ~ p(y|x)} (d log p(y|x) / d w_i)^2``: labels come *from the model itself*, so none are needed and the
expected gradient of every image is zero. That lets several images share a backward pass: cross terms vanish in the
mean, ``E (sum_n g_n)^2 = sum_n E g_n^2``. Instead of drawing a label, every logit gets a random sign, see
`categorical`: the same mean with far less noise where the network is sure of its answers.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimbit.numerics.batches import Forward, call_network, checked_batches, count_of, output_heads, pieces
from slimbit.numerics.copies import copied
from slimbit.numerics.grid import layer_weight
from slimbit.numerics.moments import check_finite
from slimbit.numerics.strided import safe_gradients
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.records.sensitivity import Sensitivity
from slimbit.records.text import fault_of

Likelihood = Callable[[Any, torch.Generator], Tensor]
"""From a network's output to ``-log p(y|x)`` summed over images, with ``y`` sampled, or anything whose gradient has the
same second moments; differentiable."""


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
        generator: Of labels or signs; on the CPU.
        likelihood: "categorical": output ``(images, classes, ...)`` are logits, ``(images,)`` or ``(images, 1)`` the
            logit of a yes. "gaussian": any tensor, unit variance; the choice for regression and other heads. Several
            heads (a tuple, a mapping) count as independent. Or a function for anything else.
        images_per_pass: Images that share one backward pass; 1 has the least variance per image.
        forward: How to call the network on a batch.

    Where a network is certain of all its answers, no sampled label says anything: outputs are then softened, and the
    record says by how much, see `temperature_of`.

    Returns:
        One number per filter and layer. A layer that matters although no gradient arrives (it runs under
        ``torch.no_grad``, or before an arg-max) gets one number for all filters, by a random change of its weights;
        0 where the outputs do not depend on it at all.

    Raises:
        InputError: Batches the network cannot run on, an output the likelihood cannot take, gradients that are not
            finite, or outputs that depend on no layer.
    """
    sample = likelihood_of(likelihood)
    network = copied(model).eval()
    layers = [layer for layer in spec.layers if not layer.shared_with]
    weights = _weights(network, layers)
    images, found = 0, checked_batches(batches)
    temperature = temperature_of(network, found, forward) if likelihood == "categorical" else 1.0
    if temperature != 1:
        sample = partial(categorical, temperature=temperature)
    total = [torch.zeros(layer.filters, dtype=torch.float64) for layer in layers]
    with torch.enable_grad(), safe_gradients(network):
        for piece in pieces(found, images_per_pass):
            images += count_of(piece)
            loss = sample(outputs_of(network, piece, forward), generator)
            if not loss.requires_grad:
                continue
            grads = torch.autograd.grad(loss, weights, allow_unused=True)
            for k, (layer, grad) in enumerate(zip(layers, grads, strict=True)):
                if grad is not None:
                    total[k] += _per_filter(layer, grad)
    name = likelihood if isinstance(likelihood, str) else "custom"
    piece = next(pieces(found, PERTURBED_IMAGES))
    for k, layer in enumerate(layers):
        if name in DIVERGENCES and not bool(total[k].any()):
            rows = weights[k].detach()[slice(*(layer.rows or (None,)))]
            total[k] += images * _Change(network, rows, name, forward, temperature).sensitivity(piece)
    if not any(bool(t.any()) for t in total):
        raise InputError("outputs of the network must depend on its weights, got no layer that changes them")
    filters = {x.name: tuple((t / images).tolist()) for x, t in zip(layers, total, strict=True)}
    return Sensitivity(filters, images, name, temperature)


SURPRISES = 0.1
"""Labels other than the predicted one that must be expected among all that are sampled; with fewer the sensitivity is
that of a label nobody draws. A digits network with outputs ten times as large had sensitivities of 1e-21, and every
budget gave it next to no bits."""
SOFT = 0.01
"""Share of other labels that outputs are softened to then: that of an ordinary classifier on its training images."""
HOTTEST = 1e9
PROBED_IMAGES = 32


def temperature_of(network: nn.Module, batches: Iterable[Any], forward: Forward = call_network) -> float:
    """What logits are divided by so that labels sampled from them say something: 1 for all but saturated networks.

    Where fewer than `SURPRISES` sampled labels would differ from the prediction, the smallest temperature at which a
    share `SOFT` of them does. What is measured then is how far logits move beside their own size.

    Args:
        network: In evaluation mode.
        batches: Unlabelled images.
        forward: How to call the network on a batch.

    >>> sure, images = nn.Linear(1, 2, bias=False), torch.tensor([[100.0], [-50.0]])
    >>> _ = torch.nn.init.constant_(sure.weight[:1], 1.0), torch.nn.init.constant_(sure.weight[1:], -1.0)
    >>> round(temperature_of(sure, [images])), temperature_of(sure, [images / 100])
    (26, 1.0)
    """
    expected, rows = 0.0, 0
    kept: list[Tensor] = []
    with torch.no_grad():
        for piece in pieces(batches, PROBED_IMAGES):
            for head in _heads(outputs_of(network, piece, forward)):
                logits = _logits(head)
                check_finite(logits, "output of the network")
                expected += _surprise(logits, 1.0) * len(logits)
                rows += len(logits)
                kept.append((logits - logits.amax(1, keepdim=True))[:: max(1, len(logits) // 4096)].cpu())
            if expected >= SURPRISES:
                return 1.0
    if all(logits.shape[1] < 2 for logits in kept) or not any(bool(logits.any()) for logits in kept):
        return 1.0  # one class only, or outputs that are all alike
    low, high = 1.0, HOTTEST
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        soft = sum(_surprise(logits, middle) * len(logits) for logits in kept) / sum(map(len, kept))
        low, high = (middle, high) if soft < SOFT else (low, middle)
    return high


def _surprise(logits: Tensor, temperature: float) -> float:
    """Mean probability of every label but the most likely one, summed without cancellation."""
    odds = (logits.double() / temperature).softmax(1)
    odds.scatter_(1, logits.argmax(1, keepdim=True), 0.0)
    return float(odds.sum(1).mean())


def categorical(outputs: Any, generator: torch.Generator, *, temperature: float = 1.0) -> Tensor:
    """A scalar whose gradient has, over the draws, the second moments of that of ``-log p(y|x)`` with ``y ~ p``.

    ``sum_c v_c z_c`` of the logits ``z``, where ``v = sqrt(p) xi - p sum_c sqrt(p_c) xi_c`` with random signs ``xi``:
    ``E v v^T = diag(p) - p p^T``, as of ``p - onehot(y)`` (the Gauss-Newton form of the Fisher information, Martens
    2014, arXiv 1412.1193). A drawn label says nothing but once in ``1 / (1 - p)`` times, and then very much; ``v`` is
    always about as large as its mean square. Two draws for a saturated digits network differed by a factor of 6 with
    labels and by 1.2 with signs; for a ResNet-20 on its training images by 1.19 and 1.15.

    Classes are along dimension 1; one output per image is the logit of a yes; several heads are independent and add up.

    >>> logits = torch.zeros(100_000, 2, requires_grad=True)
    >>> categorical(logits, torch.Generator().manual_seed(0)).backward()
    >>> round(float(logits.grad[:, 0].square().mean()), 2)  # p (1 - p)
    0.25
    """
    losses = []
    for head in _heads(outputs):
        logits = _logits(head) / temperature
        check_finite(logits, "output of the network")
        odds = logits.detach().double().softmax(1).cpu()
        signed = odds.sqrt() * (2 * torch.randint(0, 2, odds.shape, generator=generator) - 1)
        direction = signed - odds * signed.sum(1, keepdim=True)
        losses.append((logits * direction.to(logits)).sum())
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


def _logits(head: Tensor) -> Tensor:
    """One row of logits per decision; a single output becomes the pair (0, logit)."""
    rows = head.unsqueeze(1) if head.ndim == 1 else head
    logits = rows.movedim(1, -1).reshape(-1, rows.shape[1]).float()
    return F.pad(logits, (1, 0)) if rows.shape[1] == 1 else logits


def gaussian(outputs: Any, generator: torch.Generator) -> Tensor:
    """Negative log-likelihood of targets sampled from a unit Gaussian around ``outputs``, up to a constant."""
    losses = []
    for head in _heads(outputs):
        noise = torch.randn(head.shape, generator=generator).to(head)
        losses.append(0.5 * (head - (head.detach() + noise)).square().sum())
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


PERTURBED_IMAGES, PERTURBATIONS = 64, (0.01, 0.1, 1.0)
"""Images, and sizes of a random change over the weights' root mean square, where there is no gradient: the first
that changes the outputs counts."""
DRAWS = 8


def _categorical_divergence(found: Tensor, wanted: Tensor) -> Tensor:
    p, q = _logits(wanted).double().log_softmax(1), _logits(found).double().log_softmax(1)
    return (p.exp() * (p - q)).sum()


def _gaussian_divergence(found: Tensor, wanted: Tensor) -> Tensor:
    return 0.5 * (found.double() - wanted.double()).square().sum()


DIVERGENCES = {"categorical": _categorical_divergence, "gaussian": _gaussian_divergence}


def divergence(found: Any, wanted: Any, likelihood: str) -> float:
    """Kullback-Leibler divergence of a network's outputs from wanted ones, summed over images and heads.

    Args:
        found: Outputs of a changed network.
        wanted: Outputs of the original on the same images.
        likelihood: "categorical" for logits; anything else takes outputs for means of unit Gaussians.
    """
    of_head = DIVERGENCES.get(likelihood, _gaussian_divergence)
    return float(torch.stack([of_head(f, w) for f, w in zip(_heads(found), _heads(wanted), strict=True)]).sum())


@dataclass(frozen=True)
class _Change:
    """A layer's mean sensitivity without gradients: ``KL(p || p') = 1/2 sum_i s_i d_i^2`` for a small change ``d``."""

    network: nn.Module
    weight: Tensor
    likelihood: str
    forward: Forward
    temperature: float = 1.0

    def sensitivity(self, piece: Any) -> float:
        for size in PERTURBATIONS:
            found = sum(self._at(size, piece, draw) for draw in range(DRAWS)) / DRAWS
            if found > 0:
                return found
        return 0.0

    @torch.no_grad()
    def _at(self, size: float, piece: Any, draw: int) -> float:
        before = self.weight.clone()
        wanted = self._outputs(piece)
        noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(draw)).to(before)
        self.weight.add_(noise * size * before.double().square().mean().sqrt().to(before))
        power = float((self.weight - before).double().square().sum())
        found = self._outputs(piece)
        self.weight.copy_(before)
        total = divergence(found, wanted, self.likelihood)
        return max(0.0, 2 * total / power) / count_of(piece) if power > 0 and math.isfinite(total) else 0.0

    def _outputs(self, piece: Any) -> list[Tensor]:
        return [head / self.temperature for head in _heads(self.forward(self.network, piece))]


def outputs_of(network: nn.Module, batch: Any, forward: Forward) -> Any:
    """What the network makes of a batch; `InputError` where it cannot run on it."""
    try:
        return forward(network, batch)
    except InputError:
        raise
    except Exception as error:
        reason = fault_of(error)
        raise InputError(f"calibration batches must be ones that the network runs on, got {reason}") from error


def _heads(outputs: Any) -> list[Tensor]:
    heads = output_heads(outputs)
    if not heads:
        raise InputError(f"output of the network must hold float tensors, a row per image, got {_describe(outputs)}")
    return heads


def likelihood_of(choice: Likelihood | str) -> Likelihood:
    """The likelihood of that name; `InputError` where there is none."""
    known: dict[str, Likelihood] = {"categorical": categorical, "gaussian": gaussian}
    if callable(choice):
        return choice
    if choice not in known:
        raise InputError(f"likelihood must be categorical, gaussian or a function, got {choice!r}")
    return known[choice]


def _weights(network: nn.Module, layers: list[LayerSpec]) -> list[Tensor]:
    network.requires_grad_(requires_grad=False)
    # under every name: a tied weight has those of all its owners, and a layer may know it by any of them
    named = (*network.named_buffers(remove_duplicate=False), *network.named_parameters(remove_duplicate=False))
    tensors = dict(named)
    missing = [layer.name for layer in layers if layer.weight_key not in tensors]
    if missing:
        raise InputError(f"layers must be in the network, got no weight for {', '.join(missing)}")
    return [tensors[layer.weight_key].requires_grad_() for layer in layers]


def _per_filter(layer: LayerSpec, grad: Tensor) -> Tensor:
    grad = grad.to_dense() if grad.is_sparse else grad
    rows = layer_weight(grad, layer)
    check_finite(rows, f"gradient of layer {layer.name!r}")
    return rows.double().square().flatten(1).mean(1).cpu()


def _describe(outputs: Any) -> str:
    return str(tuple(outputs.shape)) if isinstance(outputs, Tensor) else type(outputs).__name__
