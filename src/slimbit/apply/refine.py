"""Refinement of a compressed network without labels: what is still float in it learns to repeat the float network.

Scales and biases of normalization layers, and biases of others, are tuned by a few passes of the calibration images so
that the outputs of their modules come closer to those of the float network; levels and steps stay. A part of the
images is held out, and the state that diverges least on it is kept, the one before the first pass among them: so on
images that were not learned from it can only help.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.numerics.batches import Forward, call_network, count_of, output_heads, pieces
from slimbit.numerics.fidelity import fidelity_of
from slimbit.numerics.strided import safe_gradients
from slimbit.records.errors import InputError

LEARNING_RATE = 1e-3
"""Of Adam, at the beginning; falls to zero along a straight line."""
IMAGES_PER_STEP = 25
HELD_OUT = 5
"""One piece of images in so many is held out."""
FEWEST_IMAGES = 2 * IMAGES_PER_STEP


@dataclass(frozen=True)
class Refinement:
    """What a refinement gave.

    Attributes:
        passes: Passes over the calibration images that were made.
        kept: After how many of them the state that was kept was reached; 0 = nothing was changed.
        before: Mean squared distance of held-out outputs from the float ones over their variance, before.
        after: The same of the state that was kept.
    """

    passes: int
    kept: int
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"refined by {self.kept} of {self.passes} passes: squared distance from the float outputs over their "
            f"variance, on held-out calibration images, {self.before:.3g} before, {self.after:.3g} after"
        )


def refine(
    network: nn.Module,
    reference: nn.Module,
    batches: Sequence[Any],
    passes: int,
    *,
    weights: Sequence[str],
    forward: Forward = call_network,
) -> Refinement:
    """Tune the float parameters of a compressed network, in place.

    The loss is the mean, over the modules that own such a parameter, of ``||y - y_float||^2 / var(y_float)`` of their
    outputs, channel by channel.

    Args:
        network: A compressed network in evaluation mode.
        reference: The float network.
        batches: Calibration images; labels beside them are not used.
        passes: Over the images that are not held out.
        weights: Names of the parameters that hold levels.
        forward: How to call a network on a batch.

    Raises:
        InputError: Fewer than `FEWEST_IMAGES` images.
    """
    images = sum(map(count_of, batches))
    if images < FEWEST_IMAGES:
        raise InputError(f"calibration images must be at least {FEWEST_IMAGES} to refine, got {images}")
    held: list[Any] = []
    learned: list[Any] = []
    for place, piece in enumerate(pieces(batches, IMAGES_PER_STEP)):
        (held if place % HELD_OUT == 0 else learned).append(piece)
    tuned = _tuned(network, {*weights})
    before = _distance(network, reference, held, forward)
    best, kept, state = before, 0, _state(tuned)
    if not tuned or not learned:
        return Refinement(passes, 0, before, before)
    frozen = {name: value.requires_grad for name, value in network.named_parameters()}
    network.requires_grad_(requires_grad=False)
    parameters = [value.requires_grad_() for module in tuned.values() for value in module.values()]
    adam = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    order, total, step = torch.Generator().manual_seed(0), passes * len(learned), 0
    with torch.enable_grad(), safe_gradients(network):
        for number in range(1, passes + 1):
            for place in torch.randperm(len(learned), generator=order).tolist():
                adam.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / total)
                loss = _loss(network, reference, learned[place], [*tuned], forward)
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call] # of torch
                adam.step()
                step += 1
            there = _distance(network, reference, held, forward)
            if there < best:
                best, kept, state = there, number, _state(tuned)
    with torch.no_grad():
        for path, module in tuned.items():
            for name, value in module.items():
                value.copy_(state[path][name])
    for name, value in network.named_parameters():
        value.grad = None
        value.requires_grad_(frozen[name])
    return Refinement(passes, kept, before, best)


def _tuned(network: nn.Module, weights: set[str]) -> dict[str, dict[str, nn.Parameter]]:
    """Vectors of floats that are no levels, by path of their module and name."""
    found: dict[str, dict[str, nn.Parameter]] = {}
    for path, module in network.named_modules():
        for name, value in module.named_parameters(recurse=False):
            key = f"{path}.{name}" if path else name
            if value.ndim == 1 and value.is_floating_point() and key not in weights:
                found.setdefault(path, {})[name] = value
    return found


def _state(tuned: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {path: {name: value.detach().clone() for name, value in one.items()} for path, one in tuned.items()}


def _loss(network: nn.Module, reference: nn.Module, piece: Any, paths: Sequence[str], forward: Forward) -> Tensor:
    with torch.no_grad(), _outputs(reference, paths) as wanted:
        forward(reference, piece)
    with _outputs(network, paths) as found:
        forward(network, piece)
    parts = [_relative(found[path], wanted[path]) for path in paths if path in found and path in wanted]
    if not parts:
        raise InputError("modules with biases must be called by the network to be refined, got none that is")
    return torch.stack(parts).mean()


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference over the variance, mean over channels (dimension 1; the last one of two or three)."""
    channels = 1 if wanted.ndim > 3 else wanted.ndim - 1
    others = [place for place in range(wanted.ndim) if place != channels]
    power = wanted.var(others, correction=0)
    error = (found - wanted).square().mean(others)
    return (error / power.clamp_min(torch.finfo(power.dtype).eps)).clamp_max(1e3).mean()


@contextmanager
def _outputs(network: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What modules give in the next pass; of several calls the last."""
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001 - as torch calls it
            if isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 1:
                found[path] = output

        return hook

    modules = dict(network.named_modules())
    hooks = [modules[path].register_forward_hook(keep(path)) for path in paths]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _distance(network: nn.Module, reference: nn.Module, held: Sequence[Any], forward: Forward) -> float:
    """Squared distance of the outputs of the network over their variance, mean over heads."""
    sides = [[output_heads(forward(model, piece)) for piece in held] for model in (network, reference)]
    found, wanted = ([torch.cat(heads).double() for heads in zip(*side, strict=True)] for side in sides)
    return sum(1 - fidelity_of(mine, theirs) for mine, theirs in zip(found, wanted, strict=True)) / len(found)
