"""The constant that a removed filter would still send on, added to the layers that read it.

Without its weights a filter sends what its bias or the shift of its BatchNorm makes of nothing: ``relu(beta)``
behind a ReLU. Every layer that reads it sees that number at every position, so it can be added to that layer's
bias, or taken from the running mean of the BatchNorm right behind it: ``sum_c const_c * sum_k W[:, c, k]``.
That is exact except where a convolution pads with zeros, within a kernel's reach of the border.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slimbit.apply.axes import BoundAxis, bind_axes, is_read_by
from slimbit.apply.layers import first_input
from slimbit.numerics.batches import output_tensors
from slimbit.numerics.copies import copied
from slimbit.records.keep import KeepPlan
from slimbit.survey.channel_run import call
from slimbit.survey.channel_trace import storage_of
from slimbit.survey.trace import Inputs

TOLERANCE, INTERIOR = 1e-3, 0.6
"""A channel is constant if at least this share of its positions is within this part of their median."""
SEEDS = (0, 1)


def fold_constants(network: nn.Module, plan: KeepPlan, example_input: Inputs) -> None:
    """Add the constants of all removed filters to what reads them, in place.

    What is no constant (the channel is scaled by something that depends on the image), what transposed convolutions
    read and what layers read part by part is dropped, as with ``constants="zero"``.

    Args:
        network: Its weights are still all there.
        plan: What is removed.
        example_input: Tells the form of inputs; their values do not matter.
    """
    seen = _Seen(network, plan, example_input)
    for axis in bind_axes(network, plan):
        if is_read_by(axis) and not isinstance(axis.module, _ConvTransposeNd):
            shift = _shift(axis, seen.constants(axis))
            if bool(shift.any()):
                _add(axis.module, shift, seen.norm_behind(axis, network))


def _shift(axis: BoundAxis, constants: Tensor) -> Tensor:
    """What constants at the removed inputs do to each filter."""
    weight: Tensor = axis.module.weight.detach().cpu()  # type: ignore[operator] # of a convolution or linear layer
    read = weight.index_select(1, axis.index(removed=True)).double()
    return read.reshape(*read.shape[:2], -1).sum(2) @ constants


def _add(module: nn.Module, shift: Tensor, norm: _BatchNorm | None) -> None:
    with torch.no_grad():
        if norm is not None and norm.running_mean is not None:
            norm.running_mean -= shift.to(norm.running_mean)
            return
        bias = module.bias
        if not isinstance(bias, Tensor):
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            bias = nn.Parameter(weight.new_zeros(len(shift)), requires_grad=weight.requires_grad)
            module.register_parameter("bias", bias)
        bias += shift.to(bias)


class _Seen:
    """What layers read in a network whose removed filters send only their constants."""

    def __init__(self, network: nn.Module, plan: KeepPlan, example_input: Inputs) -> None:
        self._values: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._behind: dict[str, str] = {}
        self._calls: Counter[str] = Counter()
        self._readers: dict[str, int] = {}
        self._reads = _Reads()
        self._outputs: list[tuple[Tensor, str]] = []
        silent = copied(network).eval()
        for axis in bind_axes(silent, plan):
            _silence(axis)
            if is_read_by(axis):
                axis.module.register_forward_pre_hook(self._before(axis), with_kwargs=True)
                axis.module.register_forward_hook(self._after(axis.keep.name))
        for name, module in silent.named_modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(self._norm(name), with_kwargs=True)
        for seed in SEEDS:
            self._calls.clear()
            with torch.no_grad(), self._reads:
                call(silent, noise(example_input, seed))
            self._readers = {name: self._reads.count[storage_of(output)] for output, name in self._outputs}
            self._outputs.clear()

    def constants(self, axis: BoundAxis) -> Tensor:
        """The constant of each removed input, 0 where it is none; float64."""
        rows = self._values.get(axis.keep.name)
        if rows is None:
            return torch.zeros(len(axis.keep.removed), dtype=torch.float64)
        values = torch.cat(rows)
        middle = values.median(0).values
        near = (values - middle).abs() <= TOLERANCE * middle.abs()
        return torch.where(near.double().mean(0) >= INTERIOR, middle, 0.0)

    def norm_behind(self, axis: BoundAxis, network: nn.Module) -> _BatchNorm | None:
        """The BatchNorm that alone reads this layer's output, right behind it."""
        name = self._behind.get(axis.keep.name)
        if name is None or max(self._calls[name], self._calls[axis.keep.name], self._readers[axis.keep.name]) > 1:
            return None
        module = network.get_submodule(name)
        return module if isinstance(module, _BatchNorm) else None

    def _before(self, axis: BoundAxis) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            values, kernel = first_input(args, kwargs), len(getattr(module, "kernel_size", ()))
            dim = values.ndim - 1 - kernel if isinstance(values, Tensor) else 0
            if not isinstance(values, Tensor) or values.shape[dim] != axis.keep.size:
                return  # it reads its inputs part by part
            lost = values.index_select(dim, axis.index(removed=True).to(values.device))
            self._values[axis.keep.name].append(lost.movedim(dim, -1).reshape(-1, lost.shape[dim]).cpu().double())

        return hook

    def _after(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            for part in output_tensors(output):
                self._calls[name] += 1
                self._outputs.append((part, name))
                self._reads.count[storage_of(part)] = 0  # this memory may have been another's

        return hook

    def _norm(self, name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self._calls[name] += 1
            values = first_input(args, kwargs)
            self._behind.update((layer, name) for output, layer in self._outputs if output is values)

        return hook


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Counts the operations that read each tensor's memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        self.count.update({storage_of(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)})
        return func(*args, **kwargs)


def _silence(axis: BoundAxis) -> None:
    """Removed filters lose their weights but keep bias and shift: what is left is their constant."""
    names = {"filters": ("weight",), "norm": ("weight", "running_mean")}.get(axis.keep.role, ())
    with torch.no_grad():
        for name, value, entries in axis.removed():
            if name in names:
                value.masked_fill_(entries, 0.0)


def noise(inputs: Inputs, seed: int) -> Inputs:
    """Inputs of the same form with standard normal values in place of the floating-point ones."""
    generator = torch.Generator().manual_seed(seed)

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator).to(value)

    if isinstance(inputs, Tensor):
        drawn: Inputs = one(inputs)
        return drawn
    if isinstance(inputs, Mapping):
        return {key: one(value) for key, value in inputs.items()}
    return tuple(one(value) for value in inputs)
