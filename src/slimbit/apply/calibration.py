"""Calibration images and what the float network does with them; measured once, used for every point."""

import hashlib
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimbit.apply.attention import open_attention
from slimbit.apply.layers import Bound, bind, first_input
from slimbit.apply.lockstep import Lockstep
from slimbit.numerics.batches import Forward, Regrouped, call_network, checked_batches, count_of
from slimbit.numerics.copies import copied
from slimbit.numerics.memory import GIB, free_bytes, live_bytes
from slimbit.numerics.moments import (
    ChannelMoments,
    PatchSums,
    by_batch,
    channel_moments,
    check_finite,
    in_chunks,
    merge_moments,
    output_sizes,
    patches,
    sampled_positions,
    sampled_rows,
)
from slimbit.records.errors import InputError
from slimbit.records.network import NetworkSpec
from slimbit.survey.batch import tensors_in
from slimbit.survey.kinds import is_stock

SAMPLES = 16384
"""Positions per layer from which second moments are taken: 500 images give the same accuracy as all positions."""
MOST_PRODUCTS, MOST_OUTPUTS = SAMPLES * 576, 1 << 22
"""Bounds on what samples cost: positions times inputs of a layer, and positions times filters (16 MiB of outputs).

Of 100 ImageNet images and a ResNet-50, twice as many positions of layers with 1,152 to 4,608 inputs gave the same
divergence from the float network on 100 others (0.047 and 0.046 nats), and took 1.5 times as long to sum up."""
FEWEST_PER_INPUT = 1
"""Positions that each input of a layer has at least."""
BATCH_BYTES = 128 << 20
"""Activations of one batch: as few as suffice for whole-tensor operations to be efficient."""
PROBED = 4
"""Images on which the memory of activations is measured."""
FEWEST_IMAGES = 2
"""One image says nothing about what varies."""
CHUNK_ROWS = 4096
"""Positions whose products are made at once."""


@dataclass(frozen=True)
class Calibration:
    """Unlabelled images and the float network's statistics on them.

    Attributes:
        batches: The images, in batches whose activations are worked on at once.
        forward: How a network is called on a batch.
        samples: Positions sampled per layer, at most; see `samples_of`.
        seed: Seed of the sampled positions.
        batchnorms: Input moments of every BatchNorm, by module path.
        outputs: Output moments of every called layer with a bias, by layer name.
        rows: Outputs without bias at the sampled positions, ``(positions, filters)``, by layer name.
        counts: Number of output positions in each batch, by layer name.
        same_input: The first of the layers that read the very same patches, by the name of each other one.
        normalized: Layers whose output goes straight into a BatchNorm, and the path of that.
        reused: BatchNorms that are called more than once in a pass.
        events: Layers and BatchNorms in order of first use: ``("layer" | "batchnorm", name)``.
        halved: Whether what a batch holds while it waits is kept in half precision.
        division: How many images are worked on at once, in words.
        notes: What users should know, in words: images that do not fit into memory, layers whose inputs do not vary.
    """

    batches: Sequence[Any]
    forward: Forward
    samples: int
    seed: int
    batchnorms: dict[str, ChannelMoments] = field(default_factory=dict)
    outputs: dict[str, ChannelMoments] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    same_input: dict[str, str] = field(default_factory=dict)
    normalized: dict[str, str] = field(default_factory=dict)
    reused: set[str] = field(default_factory=set)
    events: list[tuple[str, str]] = field(default_factory=list)
    halved: bool = False
    division: str = ""
    notes: tuple[str, ...] = ()

    @property
    def reached(self) -> list[str]:
        """Layers that were called, in order."""
        return [name for kind, name in self.events if kind == "layer"]

    def positions(self, bound: Bound, counts: Sequence[int]) -> Tensor:
        """Positions sampled in a layer, numbered over all batches: the same for the float and every compressed network.

        Args:
            bound: The layer.
            counts: Number of output positions in each batch.
        """
        key = f"{self.seed}/{self.same_input.get(bound.spec.name, bound.spec.name)}/0".encode()
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "little"))
        return sampled_positions(sum(counts), samples_of(bound, self.samples), generator)

    def patch_sums(
        self,
        bound: Bound,
        inputs: Mapping[int, Tensor],
        *,
        outputs: bool = False,
        shared: PatchSums | None = None,
    ) -> PatchSums:
        """Sums over what a layer reads at the sampled positions.

        Args:
            bound: The layer.
            inputs: Its input in each batch that came there.
            outputs: Whether products with the float outputs are wanted; none are made where the layer met other
                positions than in the float network.
            shared: Sums over the same patches, made for another layer.
        """
        window, name = bound.window, bound.spec.name
        assert window is not None
        counts = [
            math.prod(output_sizes(bound.batched(inputs[k]), window)) if k in inputs else 0
            for k in range(len(self.batches))
        ]
        positions = self.positions(bound, counts)
        targets = self.rows.get(name) if outputs and self.counts.get(name) == tuple(counts) else None
        sums = PatchSums(shared)
        if shared is not None and targets is None:
            sums.count = shared.count
            return sums
        parts = by_batch(positions, counts)
        rows = (
            patches(_at_least_float32(bound.batched(x)), window, at=parts[k].to(x.device))
            for k, x in inputs.items()
            if len(parts[k])
        )
        start = 0
        for chunk in in_chunks(rows, CHUNK_ROWS):
            sums.add(chunk, None if targets is None else targets[start : start + len(chunk)])
            start += len(chunk)
        return sums


def samples_of(bound: Bound, samples: int) -> int:
    """Positions to sample in a layer: ``samples``, or fewer where it has many inputs or filters.

    What second moments cost grows with positions times inputs squared, and the float outputs are kept for every point:
    at most 16 MiB a layer, or the bytes of its weights.
    """
    filters, inputs = bound.spec.shape[0], math.prod(bound.spec.shape[1:])
    return min(samples, max(FEWEST_PER_INPUT * inputs, min(MOST_PRODUCTS // inputs, MOST_OUTPUTS // filters)))


def calibrate(
    model: nn.Module,
    spec: NetworkSpec,
    batches: Iterable[Any],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    batch_size: int | None = None,
    memory_bytes: int | None = None,
    forward: Forward = call_network,
) -> Calibration:
    """Run the float network once over unlabelled images and keep what every point needs.

    The images are passed through in batches that wait for each other (see `slimbit.apply.lockstep`): what is found
    is that of all images together, whatever the batches.

    Args:
        model: The float network; not changed.
        spec: Its survey.
        batches: A tensor of images, or an iterable of batches (labels beside them are ignored).
        samples: Positions sampled per layer for second moments; 0 = all.
        seed: Seed of the positions.
        batch_size: Images whose activations are worked on at once; default: as many as have activations of 128 MiB.
            What cannot be cut or joined stays as it is.
        memory_bytes: What the activations of all images may take while they wait; default: half of what is free. If
            they need more, they are kept in half precision; if that is too much, too, only the first images are
            used. ``notes`` says so.
        forward: How to call the network on a batch, for anything but a tensor, a tuple or a mapping; batches are then
            used as they are.

    Raises:
        InputError: No images, images that do not vary, or values that are not finite (the layer is named).
    """
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise InputError(f"batch size must be a whole number of 1 or more, got {batch_size!r}")
    network = open_attention(copied(model).eval())
    bounds = {name: b for name, b in bind(network, spec).items() if b.window is not None}
    parts, halved, notes = _divided(network, checked_batches(batches), bounds, batch_size, memory_bytes, forward)
    found = Calibration(parts, forward, samples, seed, halved=halved, division=_in_words(parts), notes=notes)
    watch = _CalibrationHooks(found, bounds, network)
    watch.run()
    constant = watch.constant_inputs()
    if not constant or sum(map(count_of, parts)) < FEWEST_IMAGES:
        return found
    what = f"the inputs of {len(constant)} of {len(found.reached)} layers do not vary ({', '.join(constant)})"
    if not images_vary(parts):
        raise InputError(f"calibration images must vary, got constant ones: {what}")
    return replace(found, notes=(*found.notes, f"on the calibration images {what}, so nothing is learned about them"))


def _divided(
    network: nn.Module,
    batches: tuple[Any, ...],
    bounds: Mapping[str, Bound],
    batch_size: int | None,
    memory_bytes: int | None,
    forward: Forward,
) -> tuple[Sequence[Any], bool, tuple[str, ...]]:
    """Batches of a good size, of as many images as fit into memory.

    Returns:
        The batches, whether waiting ones are kept in half precision, and notes where they are or images are left out.
    """
    cut = forward is call_network
    probe = Regrouped(batches, PROBED)[0] if cut else batches[0]
    stops = {*(b.module for b in bounds.values()), *batchnorms(network).values()}
    live = live_bytes(network, probe, forward, stops)
    whole, half = (max(1.0, each / count_of(probe)) for each in (live.whole, live.halved))
    device = next((x.device for x in network.state_dict().values() if isinstance(x, Tensor)), torch.device("cpu"))
    limit = free_bytes(device) // 2 if memory_bytes is None else memory_bytes
    images = sum(map(count_of, batches))
    halved = whole * images > limit
    fitting = max(1, int(limit // (half if halved else whole)))
    # where others are halved, the batch that runs is whole: it must be a small one
    size = batch_size or max(1, min(int(min(BATCH_BYTES, limit / (WHOLE_PART if halved else 1)) // whole), images))
    parts: Sequence[Any] = Regrouped(batches, size, fitting) if cut else _fitting(batches, fitting)
    used = parts.images if isinstance(parts, Regrouped) else sum(map(count_of, parts))
    if not halved:
        return parts, False, ()
    needed, allowed = whole * images / GIB, limit / GIB
    less = "" if used >= images else f", and uses {used} of {images} images"
    note = (
        f"calibration keeps waiting activations in half precision{less}: "
        f"those of all images need {needed:.3g} GiB, and {allowed:.3g} are allowed"
    )
    return parts, True, (note,)


WHOLE_PART = 8
"""One part in so many of the memory is for the batch that runs, where those that wait are kept in half precision."""


def _in_words(parts: Sequence[Any]) -> str:
    images, most = sum(map(count_of, parts)), count_of(parts[0])
    return f"{images} calibration images, {most} at a time"


def _fitting(batches: tuple[Any, ...], images: int) -> tuple[Any, ...]:
    """The first batches that hold at most so many images, one at least."""
    ends = itertools.accumulate(map(count_of, batches))
    return batches[: max(1, sum(end <= images for end in ends))]


class _CalibrationHooks:
    """Hooks that note what the batches do in the float network."""

    def __init__(self, found: Calibration, bounds: Mapping[str, Bound], network: nn.Module) -> None:
        self.found, self.bounds, self.network = found, bounds, network
        self.norms = batchnorms(network)
        self.lockstep = Lockstep(network, found.batches, found.forward, self._note, halved=found.halved)
        self.recent: dict[int, list[tuple[Tensor, int, str]]] = {}
        self.inputs: dict[str, dict[int, TensorState]] = {}
        self.ranges: dict[str, Range] = {}

    def constant_inputs(self) -> list[str]:
        """Layers of whose input no channel varies, over all images and positions."""
        return [name for name in self.found.reached if name in self.ranges and is_constant(self.ranges[name])]

    def run(self) -> None:
        handles = [
            b.module.register_forward_hook(self._layer(name), with_kwargs=True) for name, b in self.bounds.items()
        ]
        for name, module in self.norms.items():
            handles.append(module.register_forward_pre_hook(self._batchnorm(name), with_kwargs=True))
        places = [("layer", name) for name in self.bounds] + [("batchnorm", name) for name in self.norms]
        modules = {id(module): place for place, module in enumerate(self.network.modules())}
        owners = [*(b.module for b in self.bounds.values()), *self.norms.values()]
        order = {place: modules[id(owner)] for place, owner in zip(places, owners, strict=True)}
        try:
            self.lockstep.run(order.__getitem__)
        finally:
            for handle in handles:
                handle.remove()

    def _layer(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            values = first_input(args, kwargs)
            if not output.numel() or not (is_stock(module) or _is_linear(self.bounds[name], values, output)):
                return
            recent = self.recent.setdefault(self.lockstep.current, [])
            recent[:] = [*recent[-3:], (output, output._version, name)]
            self.ranges[name] = range_of(self.bounds[name].batched(values), self.bounds[name], self.ranges.get(name))
            if not self.lockstep.has_met(("layer", name)):
                self.inputs.setdefault(name, {})[self.lockstep.current] = state_of(values)
            self.lockstep.wait(("layer", name), output)

        return hook

    def _batchnorm(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = first_input(args, kwargs)
            if not values.numel():
                return
            # another version: something, e.g. a ReLU, has changed the output in place
            self.found.normalized.update(
                (layer, name)
                for output, version, layer in self.recent.get(self.lockstep.current, ())
                if output is values and output._version == version
            )
            if self.lockstep.has_met(("batchnorm", name)):
                self.found.reused.add(name)
            self.lockstep.wait(("batchnorm", name), values)

        return hook

    def _note(self, place: tuple[str, str], values: dict[int, Tensor]) -> None:
        """What is noted once all batches are at a layer's output or a BatchNorm's input."""
        kind, name = place
        what = f"{f'output of layer {name!r}' if kind == 'layer' else f'input of {name!r}'} on the calibration images"
        if place not in self.found.events:
            self.found.events.append(place)
        if kind == "batchnorm":
            _add(self.found.batchnorms, name, channel_moments([*values.values()], what=what))
            return
        bound = self.bounds[name]
        bias, axis = bound.bias(), bound.channel_axis
        outputs = {number: bound.batched(value) for number, value in values.items()}
        for output in outputs.values():
            check_finite(output, what)
        if bias is not None:
            _add(self.found.outputs, name, channel_moments([*outputs.values()], axis=axis))
        numbers = range(len(self.found.batches))
        counts = [outputs[k].numel() // outputs[k].shape[axis] if k in outputs else 0 for k in numbers]
        self._compare_inputs(name)
        parts = by_batch(self.found.positions(bound, counts), counts)
        rows = [sampled_rows(x, channel_axis=axis, at=parts[k].to(x.device)) for k, x in outputs.items()]
        self.found.rows[name] = torch.cat(rows) if bias is None else torch.cat(rows).sub_(bias.detach())
        self.found.counts[name] = tuple(counts)

    def _compare_inputs(self, name: str) -> None:
        """Find an earlier layer that has read the very same tensors in the same way."""
        mine, bound = self.inputs[name], self.bounds[name]
        for other, theirs in self.inputs.items():
            same = other != name and other not in self.found.same_input and self.bounds[other].window == bound.window
            if (
                same
                and samples_of(self.bounds[other], SAMPLES) == samples_of(bound, SAMPLES)
                and are_same(mine, theirs)
            ):
                self.found.same_input[name] = other
                return


Range = tuple[Tensor, Tensor]
"""Least and largest value of each channel."""
CONSTANT = 1e-5
"""Range of a channel, relative to its values, that is rounding: positions of one convolution differ by as much."""


def range_of(values: Tensor, bound: Bound, known: Range | None) -> Range:
    """Range of each input channel of a layer, of these values and of those before."""
    channels = values.detach().movedim(bound.channel_axis, 0).flatten(1)
    low, high = channels.amin(1), channels.amax(1)
    return (low, high) if known is None else (torch.minimum(low, known[0]), torch.maximum(high, known[1]))


def is_constant(found: Range) -> bool:
    """Whether no channel varies."""
    low, high = (value.double() for value in found)
    return bool((high - low <= CONSTANT * torch.maximum(low.abs(), high.abs())).all())


def images_vary(batches: Iterable[Any]) -> bool:
    """Whether any value differs between images or positions of a channel.

    >>> images_vary([torch.ones(2, 3, 4, 4)]), images_vary([torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)])
    (False, True)
    """
    first: list[Tensor] = []
    for batch in batches:
        tensors = [x if x.ndim > 1 else x.reshape(-1, 1) for x in tensors_in(batch)]
        channels = [x.detach().transpose(0, 1).flatten(1) for x in tensors]
        first = first or [x[:, :1] for x in channels]
        if any(bool((x != one).any()) for x, one in zip(channels, first, strict=True)):
            return True
    return False


TensorState = tuple["weakref.ref[Tensor]", int]
"""Which tensor, and how often it had been changed in place."""


def state_of(values: Tensor) -> TensorState:
    """The state of a tensor, which does not keep it alive."""
    return weakref.ref(values), values._version


def are_same(mine: Mapping[int, TensorState], theirs: Mapping[int, TensorState]) -> bool:
    """Whether the tensors of all batches are the same living ones, not changed in between."""
    return mine.keys() == theirs.keys() and all(
        tensor() is theirs[number][0]() is not None and version == theirs[number][1]
        for number, (tensor, version) in mine.items()
    )


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _is_linear(bound: Bound, values: Tensor, output: Tensor) -> bool:
    """Whether a subclass's output is its weight times the patches of its input: only then can errors be compensated."""
    assert bound.window is not None
    window, groups = bound.window, bound.window.groups
    values, output, bias = bound.batched(values), bound.batched(output), bound.bias()
    try:
        total = math.prod(output_sizes(values, window))
        if total * bound.spec.shape[0] != output.numel():
            return False
        at = sampled_positions(total, CHECKED).to(output.device)
        rows = patches(values.float(), window, at=at)
    except (RuntimeError, IndexError, ValueError):  # no such window fits into the input
        return False
    found = sampled_rows(output, channel_axis=bound.channel_axis, at=at).float()
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
