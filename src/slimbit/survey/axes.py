"""Where channels sit in a network: which tensors of which module, which dimension; and taking some of them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.padding import _ConstantPadNd

from slimbit.numerics.channel_order import Reordering, channel_order, keep_order
from slimbit.numerics.channel_window import keep_places
from slimbit.records.errors import InputError
from slimbit.records.groups import Role

Slots = tuple[tuple[str, int], ...]
IN_GROUPS = -1
"""In place of a dimension: the second of a grouped convolution's weight, on which each group has its own channels."""


@dataclass(frozen=True)
class Axis:
    """An axis of a module or parameter.

    Attributes:
        name: As in `slimbit.records.groups.Member`.
        role: As in `slimbit.records.groups.Member`.
        size: Its length.
        module: The module that holds it.
        slots: Name and dimension of each tensor of the module that has the axis.
        groups: Of a convolution's filters or inputs.
        dim: As in `slimbit.records.groups.Member`.
    """

    name: str
    role: Role
    size: int
    module: nn.Module
    slots: Slots
    groups: int = 1
    dim: int | None = None

    def tensors(self) -> Iterator[tuple[str, int, Tensor]]:
        """Name, dimension and value of the tensors that are there, pruning masks of earlier included."""
        for name, dim in self.slots:
            for attribute in (name, f"{name}_mask"):
                value = getattr(self.module, attribute, None)
                if isinstance(value, Tensor):
                    yield attribute, dim, value

    def entries(self, dim: int, value: Tensor, places: Tensor) -> Tensor:
        """Which entries of one of its tensors are at these places: bool, of the tensor's shape.

        Args:
            dim: The tensor's dimension, as `tensors` gives it.
            value: The tensor.
            places: Places on the axis.
        """
        if dim != IN_GROUPS:
            shape = [1] * value.ndim
            shape[dim] = -1
            line = torch.zeros(value.shape[dim], dtype=torch.bool, device=value.device)
            return line.index_fill(0, places.to(value.device), value=True).reshape(shape).expand(value.shape)
        groups, width = self.groups, value.shape[1]
        table = torch.zeros(groups * width, dtype=torch.bool, device=value.device)
        table = table.index_fill(0, places.to(value.device), value=True).reshape(groups, 1, width)
        rows = table.expand(groups, len(value) // groups, width).reshape(len(value), width)
        return rows.reshape(*rows.shape, *(1,) * (value.ndim - 2)).expand(value.shape)

    def take(self, places: Tensor, *, whole_groups: bool | None = None) -> None:
        """Leave these entries in the tensors, in this order, and tell the module their number.

        Args:
            places: Places on the axis, of a grouped convolution group by group; some may be there several times.
            whole_groups: Whether a grouped convolution gets another number of groups, not groups of another size;
                None: whether there are groups without a place.
        """
        groups = self.groups
        if whole_groups is None:
            whole_groups = groups > 1 and len({*(places // (self.size // groups)).tolist()}) < groups
        for name, dim, value in self.tensors():
            old = value.detach()
            if dim != IN_GROUPS:
                taken = old.index_select(dim, places.to(value.device))
            elif whole_groups:
                continue  # the other axis of the weight takes them
            else:
                taken = _taken_in_groups(old, places.to(value.device), groups)
            if isinstance(value, nn.Parameter):
                taken = nn.Parameter(taken, requires_grad=value.requires_grad)
            setattr(self.module, name, taken)
        self._resize(places, groups * len(places) // self.size if whole_groups else groups)

    def _resize(self, places: Tensor, groups: int) -> None:  # noqa: C901 - one branch per kind of module
        """The sizes that the module itself remembers."""
        module: Any = self.module
        size = len(places)
        if self.role == "size":
            set_number(module, self.name, size)
        elif self.role in ("index", "values"):
            self._renumber(places)
        elif self.role in ("window", "order"):
            keep = keep_places if self.role == "window" else keep_order
            keep(module, self.dim or 0, self.size, places)
        elif isinstance(module, _ConvNd) and self.role == "filters":
            module.groups, module.out_channels = groups, size
        elif isinstance(module, _ConvNd):
            module.in_channels = size
        elif isinstance(module, nn.Linear) and self.role == "filters":
            module.out_features = size
        elif isinstance(module, nn.Linear):
            module.in_features = size
        elif isinstance(module, _NormBase):
            module.num_features = size
        elif isinstance(module, nn.GroupNorm):
            module.num_groups = module.num_groups * size // self.size
            module.num_channels = size
        elif isinstance(module, nn.PReLU):
            module.num_parameters = size
        elif isinstance(module, _ConstantPadNd):
            self._repad(module, places)

    def _renumber(self, places: Tensor) -> None:
        attribute = self.name.rpartition(".")[2]
        picks: Tensor = getattr(self.module, attribute)
        places = places.to(picks.device)
        if self.role == "index":
            setattr(self.module, attribute, picks.index_select(0, places))
        else:
            new = torch.zeros(self.size, dtype=picks.dtype, device=picks.device)
            new[places] = torch.arange(len(places), dtype=picks.dtype, device=picks.device)
            setattr(self.module, attribute, new[picks])

    def _repad(self, module: _ConstantPadNd, places: Tensor) -> None:
        place = pad_place(module, self.size)
        assert place is not None  # `find_axis` asked
        low = int((places < module.padding[place]).sum())
        module.padding = (*module.padding[:place], low, len(places) - low, *module.padding[place + 2 :])


def find_axis(modules: Mapping[str, nn.Module], name: str, role: Role, size: int, dim: int | None = None) -> Axis:
    """An axis in a network.

    Args:
        modules: Modules of the network by path.
        name: As in `slimbit.records.groups.Member`.
        role: As in `slimbit.records.groups.Member`.
        size: What its length must be.
        dim: As in `slimbit.records.groups.Member`; of a parameter by default the first dimension of that size.

    Raises:
        InputError: Another network: a module, its kind or its size is not as asked for.
    """
    path = name.rpartition(".")[0] if role in ("parameter", "size", "index", "values") else name
    module = modules.get(path)
    if module is None:
        raise InputError(f"plan must be for this network, got {name!r}, which it does not have")
    slots, found = _slots(module, name.removeprefix(f"{path}."), role, size, dim)
    if found != size:
        wanted = "none" if found is None else str(found)
        raise InputError(f"plan must be for this network: {role} of {name!r} must be {wanted}, got {size}")
    groups = module.groups if isinstance(module, _ConvNd) and role in ("filters", "inputs") else 1
    return Axis(name, role, size, module, slots, groups, dim)


def _slots(  # noqa: PLR0911 - one per kind of axis
    module: nn.Module, attribute: str, role: Role, size: int, dim: int | None
) -> tuple[Slots, int | None]:
    """Tensors and dimensions of the axis, and its size; None where a module of that kind has no such axis."""
    if isinstance(module, _ConvNd) and role in ("filters", "inputs"):
        return _of_convolution(module, role)
    if isinstance(module, nn.Linear) and role == "filters":
        return (("weight", 0), ("bias", 0)), module.out_features
    if isinstance(module, nn.Linear) and role == "inputs":
        return (("weight", 1),), module.in_features
    if isinstance(module, _NormBase | nn.GroupNorm) and role == "norm":
        count = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
        return tuple((name, 0) for name in ("weight", "bias", "running_mean", "running_var")), count
    if role == "parameter":
        return _of_parameter(getattr(module, attribute, None), attribute, size, dim)
    if role == "size":
        return (), number_of(module, attribute)
    if role in ("window", "order"):
        return (), _moved_over(module, role, size, dim)
    if role in ("index", "values"):
        return (), _of_picks(getattr(module, attribute, None), role, size)
    if isinstance(module, _ConstantPadNd) and role == "padding":
        return (), size if pad_place(module, size) is not None else None
    return (), None


def _of_parameter(value: Any, attribute: str, size: int, dim: int | None) -> tuple[Slots, int | None]:
    shape = list(value.shape) if isinstance(value, Tensor) else []
    if dim is not None:
        return ((attribute, dim),), shape[dim] if dim < len(shape) else None
    return ((attribute, shape.index(size)),) if size in shape else (), max(shape, default=None)


def _of_picks(value: Any, role: Role, size: int) -> int | None:
    """How many entries a buffer of channel numbers has; or the size that was asked for, if its numbers are below it."""
    if not isinstance(value, Tensor) or value.ndim != 1 or value.is_floating_point():
        return None
    return len(value) if role == "index" else size if value.is_meta or int(value.max()) < size else None


def _moved_over(module: nn.Module, role: Role, size: int, dim: int | None) -> int | None:
    """The size that was asked for, if a module's kernel slides over channels or a module reorders so many of them."""
    if dim is None:
        return None
    if role == "window":
        return size if isinstance(module, _ConvNd) and dim < len(module.kernel_size) else None
    return size if isinstance(module, Reordering) or channel_order(module, size, dim) is not None else None


def _of_convolution(module: _ConvNd, role: Role) -> tuple[Slots, int]:
    """A grouped convolution stores its groups along the first dimension, once: there they go with filters or inputs."""
    size = module.out_channels if role == "filters" else module.in_channels
    first = (role == "filters") != module.transposed
    bias = (("bias", 0),) if role == "filters" else ()
    return (("weight", 0 if first else 1 if module.groups == 1 else IN_GROUPS), *bias), size


def _taken_in_groups(value: Tensor, places: Tensor, groups: int) -> Tensor:
    """Entries of the second dimension, which each group of the first counts for itself."""
    width = value.shape[1]
    table = (places.reshape(groups, -1) % width)[:, None].expand(groups, len(value) // groups, -1)
    rows = table.reshape(len(value), -1, *(1,) * (value.ndim - 2))
    return value.gather(1, rows.expand(-1, -1, *value.shape[2:]))


def pad_place(module: _ConstantPadNd, size: int) -> int | None:
    """Which pair of the padding adds that many channels; None where none or several do."""
    pairs = [k for k in range(0, len(module.padding), 2) if sum(module.padding[k : k + 2]) == size]
    return pairs[0] if len(pairs) == 1 else None


def numbers_of(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Integers that a module keeps as attributes, also in lists: ``width`` or ``sizes[1]``."""
    for name, value in vars(module).items():
        values = enumerate(value) if isinstance(value, list | tuple) else [("", value)]
        for place, number in values:
            if isinstance(number, int) and not isinstance(number, bool):
                yield (name if place == "" else f"{name}[{place}]"), number


def number_of(module: nn.Module, attribute: str) -> int | None:
    """The integer of that name; None if there is none."""
    return dict(numbers_of(module)).get(attribute)


def set_number(module: nn.Module, name: str, value: int) -> None:
    """Change an integer that a module keeps as an attribute."""
    found = re.fullmatch(r"(.*?)(?:\[(\d+)\])?", name.rpartition(".")[2])
    assert found is not None
    attribute, place = found.groups()
    if place is None:
        setattr(module, attribute, value)
        return
    numbers = list(getattr(module, attribute))
    numbers[int(place)] = value
    setattr(module, attribute, type(getattr(module, attribute))(numbers))
