"""Calibration images and what the float network does with them; measured once, used for every point."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimbit.apply.layers import Bound, bind, first_input
from slimbit.numerics.batches import Forward, call_network, checked_batches, joined
from slimbit.numerics.copies import copied
from slimbit.numerics.moments import (
    ChannelMoments,
    channel_moments,
    check_finite,
    merge_moments,
    patches,
    sampled_rows,
)
from slimbit.records.network import NetworkSpec
from slimbit.survey.kinds import is_stock

SAMPLES = 16384
"""Positions per layer from which second moments are taken: 500 images give the same accuracy as all positions."""


@dataclass(frozen=True)
class Calibration:
    """Unlabelled images and the float network's statistics on them.

    Attributes:
        batches: One batch: everything in one flight. Several: one pass per group of layers, memory of one batch.
        forward: How a network is called on a batch.
        batchnorms: Input moments of every BatchNorm, by module path.
        outputs: Output moments of every called layer, by layer name.
        rows: Outputs without bias at the sampled positions, ``(positions, filters)``, by layer name and batch number.
        normalized: Layers whose output goes straight into a BatchNorm.
        reused: BatchNorms that are called more than once in a pass.
        events: Layers and BatchNorms in order of first use: ``("layer" | "batchnorm", name)``.
        samples: Positions sampled per layer.
        seed: Seed of the sampled positions.
    """

    batches: tuple[Any, ...]
    forward: Forward
    samples: int
    seed: int
    batchnorms: dict[str, ChannelMoments] = field(default_factory=dict)
    outputs: dict[str, ChannelMoments] = field(default_factory=dict)
    rows: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    normalized: set[str] = field(default_factory=set)
    reused: set[str] = field(default_factory=set)
    events: list[tuple[str, str]] = field(default_factory=list)

    @property
    def reached(self) -> list[str]:
        """Layers that were called, in order."""
        return [name for kind, name in self.events if kind == "layer"]

    def generator(self, name: str, batch: int) -> torch.Generator:
        """Positions sampled in a layer: the same for the float and every compressed network."""
        key = f"{self.seed}/{name}/{batch}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "little"))

    @property
    def samples_per_batch(self) -> int:
        """Positions sampled of one batch."""
        return -(-self.samples // len(self.batches))


def calibrate(
    model: nn.Module,
    spec: NetworkSpec,
    batches: Iterable[Any],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    join: bool = True,
    forward: Forward = call_network,
) -> Calibration:
    """Run the float network once over unlabelled images and keep what every point needs.

    Args:
        model: The float network; not changed.
        spec: Its survey.
        batches: A tensor of images, or an iterable of batches (labels beside them are ignored).
        samples: Positions sampled per layer for second moments; 0 = all.
        seed: Seed of the positions.
        join: Whether to join tensor batches into one, which makes each point one pass; False keeps the memory of
            one batch and makes each point one short pass per layer.
        forward: How to call the network on a batch, for anything but a tensor, a tuple or a mapping.

    Raises:
        InputError: No images, or values that are not finite (the layer is named).
    """
    parts = checked_batches(batches)
    if join and forward is call_network:
        parts = joined(parts)
    found = Calibration(parts, forward, samples, seed)
    network = copied(model).eval()
    bounds = {name: b for name, b in bind(network, spec).items() if b.window is not None}
    for number, batch in enumerate(parts):
        _Watch(found, bounds, number).run(network, batch)
    return found


class _Watch:
    """Hooks that note what one batch does in the float network."""

    def __init__(self, found: Calibration, bounds: Mapping[str, Bound], number: int) -> None:
        self.found, self.bounds, self.number = found, bounds, number
        self.seen: set[tuple[str, str]] = set()
        self.fresh: list[tuple[Tensor, int, str]] = []

    def run(self, network: nn.Module, batch: Any) -> None:
        handles = [
            b.module.register_forward_hook(self._layer(name), with_kwargs=True) for name, b in self.bounds.items()
        ]
        for name, module in batchnorms(network).items():
            handles.append(module.register_forward_pre_hook(self._batchnorm(name), with_kwargs=True))
        try:
            with torch.no_grad():
                self.found.forward(network, batch)
        finally:
            for handle in handles:
                handle.remove()

    def _first(self, kind: str, name: str) -> bool:
        event = (kind, name)
        if event in self.seen:
            return False
        self.seen.add(event)
        if event not in self.found.events:
            self.found.events.append(event)
        return True

    def _layer(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            bound = self.bounds[name]
            if not output.numel() or not (is_stock(module) or _is_linear(bound, first_input(args, kwargs), output)):
                return
            self.fresh = [*self.fresh[-3:], (output, output._version, name)]
            if not self._first("layer", name):
                return
            output = bound.batched(output)
            check_finite(output, f"output of layer {name!r} on the calibration images")
            _add(self.found.outputs, name, channel_moments(output, axis=bound.channel_axis))
            rows = sampled_rows(
                output,
                channel_axis=bound.channel_axis,
                samples=self.found.samples_per_batch,
                generator=self.found.generator(name, self.number),
            )
            bias = bound.bias()
            values = rows.clone() if bias is None else rows - bias.detach()
            self.found.rows.setdefault(name, {})[self.number] = values

        return hook

    def _batchnorm(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            values = first_input(args, kwargs)
            if not values.numel():
                return
            # another version: something, e.g. a ReLU, has changed the output in place
            self.found.normalized.update(
                layer for output, version, layer in self.fresh if output is values and output._version == version
            )
            if self._first("batchnorm", name):
                check_finite(values, f"input of {name!r} on the calibration images")
                _add(self.found.batchnorms, name, channel_moments(values))
            else:
                self.found.reused.add(name)

        return hook


def _is_linear(bound: Bound, values: Tensor, output: Tensor) -> bool:
    """Whether a subclass's output is its weight times the patches of its input: only then can errors be compensated."""
    assert bound.window is not None
    window, groups = bound.window, bound.window.groups
    values, output, bias = bound.batched(values), bound.batched(output), bound.bias()
    try:
        rows = patches(values.float(), window, samples=CHECKED)
    except RuntimeError:  # no such window fits into the input
        return False
    found = sampled_rows(output, channel_axis=bound.channel_axis, samples=CHECKED, generator=None).float()
    weight = bound.weight().detach().float().reshape(groups, -1, rows.shape[2])
    wanted = torch.einsum("pgd,gfd->pgf", rows, weight).flatten(1) + (0.0 if bias is None else bias.float())
    return wanted.shape == found.shape and bool((wanted - found).norm() <= TOLERANCE * found.norm())


CHECKED, TOLERANCE = 64, 0.02
"""Positions at which a subclass is compared with torch's own module, and how far it may be off."""


def _add(table: dict[str, ChannelMoments], name: str, part: ChannelMoments) -> None:
    table[name] = merge_moments(table[name], part) if name in table else part


def batchnorms(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm modules with running statistics, by path."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and isinstance(module.running_mean, Tensor)
    }
