"""Where the axes of a keep plan sit in a network."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slimbit.records.errors import InputError
from slimbit.records.keep import AxisKeep, KeepPlan
from slimbit.survey.axes import Axis, find_axis


@dataclass(frozen=True)
class BoundAxis:
    """An axis of a plan found in a network.

    Attributes:
        keep: What stays.
        axis: Where it is.
    """

    keep: AxisKeep
    axis: Axis

    @property
    def module(self) -> nn.Module:
        """The module that holds it."""
        return self.axis.module

    def removed(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name and value of the tensors that are there, and which of their entries go; pruning masks included."""
        for name, dim, value in self.axis.tensors():
            yield name, value, self.axis.entries(dim, value, self.index(removed=True))

    def index(self, *, removed: bool = False) -> Tensor:
        """Places that stay, or that go."""
        return torch.tensor(self.keep.removed if removed else self.keep.kept, dtype=torch.long)


def bind_axes(network: nn.Module, plan: KeepPlan) -> list[BoundAxis]:
    """Every axis of the plan in the network.

    Raises:
        InputError: The plan is for another network: a module, its kind or its size is not as the plan says, or a
            grouped convolution or normalization would not lose whole groups.
    """
    modules = dict(network.named_modules())
    bound = [BoundAxis(keep, find_axis(modules, keep.name, keep.role, keep.size, keep.dim)) for keep in plan.axes]
    for axis in bound:
        if axis.keep.role == "filters" and isinstance(axis.module, _ConvNd) and axis.module.groups > 1:
            _check_groups(axis, plan)
        if axis.keep.role == "norm" and isinstance(axis.module, nn.GroupNorm):
            _whole_groups(axis.keep.kept, axis.module.num_channels // axis.module.num_groups, axis.keep.name)
    return bound


def is_read_by(axis: BoundAxis) -> bool:
    """Whether these are inputs that every filter of a layer reads, not those of one group."""
    return axis.keep.role == "inputs" and getattr(axis.module, "groups", 1) == 1


def _check_groups(axis: BoundAxis, plan: KeepPlan) -> None:
    module, name = axis.module, axis.keep.name
    assert isinstance(module, _ConvNd)
    inputs = plan.axis(name, "inputs")
    kept = tuple(range(module.in_channels)) if inputs is None else inputs.kept
    filters, reads = (
        Counter(place // (size // module.groups) for place in places)
        for places, size in ((axis.keep.kept, module.out_channels), (kept, module.in_channels))
    )
    even = all({*counts} == {*range(module.groups)} and len({*counts.values()}) == 1 for counts in (filters, reads))
    if not even and _whole_groups(axis.keep.kept, module.out_channels // module.groups, name) != _whole_groups(
        kept, module.in_channels // module.groups, name
    ):
        raise InputError(f"plan must keep whole groups of {name!r}, or as much of each, got parts of them")


def _whole_groups(kept: tuple[int, ...], size: int, name: str) -> set[int]:
    """The groups of that size that stay."""
    groups = {place // size for place in kept}
    if len(groups) * size != len(kept):
        raise InputError(f"plan must keep whole groups of {name!r}, or as much of each, got parts of them")
    return groups
