"""Where the axes of a keep plan sit in a network: which tensors, which dimension."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.padding import _ConstantPadNd

from slimbit.records.errors import InputError
from slimbit.records.keep import AxisKeep, KeepPlan


@dataclass(frozen=True)
class BoundAxis:
    """An axis of a plan found in a network.

    Attributes:
        keep: What stays.
        module: The module that holds it.
        slots: Name and dimension of each tensor of the module that has the axis.
    """

    keep: AxisKeep
    module: nn.Module
    slots: tuple[tuple[str, int], ...]

    def tensors(self) -> Iterator[tuple[str, int, Tensor]]:
        """Name, dimension and value of the tensors that are there, pruning masks of earlier included."""
        for name, dim in self.slots:
            for attribute in (name, f"{name}_mask"):
                value = getattr(self.module, attribute, None)
                if isinstance(value, Tensor):
                    yield attribute, dim, value

    def index(self, *, removed: bool = False) -> Tensor:
        """Places that stay, or that go."""
        return torch.tensor(self.keep.removed if removed else self.keep.kept, dtype=torch.long)


def bind_axes(network: nn.Module, plan: KeepPlan) -> list[BoundAxis]:
    """Every axis of the plan in the network.

    Raises:
        InputError: The plan is for another network: a module, its kind or its size is not as the plan says, or a
            grouped convolution would not lose whole groups.
    """
    modules = dict(network.named_modules())
    bound = [_bind(modules, axis) for axis in plan.axes]
    for axis in bound:
        if axis.keep.role == "filters" and isinstance(axis.module, _ConvNd) and axis.module.groups > 1:
            _check_groups(axis, plan)
    return bound


def is_read_by(axis: BoundAxis) -> bool:
    """Whether these are inputs that every filter of a layer reads, not those of one group."""
    return axis.keep.role == "inputs" and getattr(axis.module, "groups", 1) == 1


def _bind(modules: dict[str, nn.Module], axis: AxisKeep) -> BoundAxis:
    path, attribute = (axis.name, "") if axis.role != "parameter" else _split(axis.name)
    module = modules.get(path)
    if module is None:
        raise InputError(f"plan must be for this network, got {axis.name!r}, which it does not have")
    slots, size = _slots(module, axis, attribute)
    if size != axis.size:
        found = "none" if size is None else str(size)
        raise InputError(
            f"plan must be for this network: {axis.role} of {axis.name!r} must be {found}, got {axis.size}"
        )
    return BoundAxis(axis, module, slots)


def _split(key: str) -> tuple[str, str]:
    path, _, attribute = key.rpartition(".")
    return path, attribute


def _slots(module: nn.Module, axis: AxisKeep, attribute: str) -> tuple[tuple[tuple[str, int], ...], int | None]:
    """Tensors and dimensions of the axis, and its size; None where a module of that kind has no such axis."""
    if isinstance(module, _ConvNd) and axis.role in ("filters", "inputs"):
        return _of_convolution(module, axis)
    if isinstance(module, nn.Linear) and axis.role in ("filters", "inputs"):
        filters = axis.role == "filters"
        return (
            ((("weight", 0), ("bias", 0)), module.out_features) if filters else ((("weight", 1),), module.in_features)
        )
    if isinstance(module, _BatchNorm) and axis.role == "norm":
        return tuple((name, 0) for name in ("weight", "bias", "running_mean", "running_var")), module.num_features
    if axis.role == "parameter":
        value = getattr(module, attribute, None)
        shape = list(value.shape) if isinstance(value, Tensor) else []
        return ((attribute, shape.index(axis.size)),) if axis.size in shape else (), max(shape, default=None)
    if isinstance(module, _ConstantPadNd) and axis.role == "padding":
        return (), axis.size if pad_place(module, axis.size) is not None else None
    return (), None


def _of_convolution(module: _ConvNd, axis: AxisKeep) -> tuple[tuple[tuple[str, int], ...], int]:
    """A grouped convolution stores its groups along the first dimension, once: there they go with filters or inputs."""
    size = module.out_channels if axis.role == "filters" else module.in_channels
    first = (axis.role == "filters") != module.transposed
    bias = (("bias", 0),) if axis.role == "filters" else ()
    if module.groups > 1 and not first:
        return bias, size
    return (("weight", 0 if first else 1), *bias), size


def pad_place(module: _ConstantPadNd, size: int) -> int | None:
    """Which pair of the padding adds that many channels; None where none or several do."""
    pairs = [k for k in range(0, len(module.padding), 2) if sum(module.padding[k : k + 2]) == size]
    return pairs[0] if len(pairs) == 1 else None


def _check_groups(axis: BoundAxis, plan: KeepPlan) -> None:
    module, name = axis.module, axis.keep.name
    assert isinstance(module, _ConvNd)
    inputs = plan.axis(name, "inputs")
    kept = axis.keep.kept, tuple(range(module.in_channels)) if inputs is None else inputs.kept
    sizes = module.out_channels // module.groups, module.in_channels // module.groups
    groups = [{place // size for place in places} for places, size in zip(kept, sizes, strict=True)]
    whole = all(len(g) * size == len(places) for g, size, places in zip(groups, sizes, kept, strict=True))
    if groups[0] != groups[1] or not whole:
        raise InputError(f"plan must keep whole groups of the grouped convolution {name!r}, got parts of them")
