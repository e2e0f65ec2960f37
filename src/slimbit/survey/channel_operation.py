"""One operation of a traced pass: its arguments by name, and what its rule says of the channels of its tensors."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from slimbit.survey.channel_groups import NOT_A_FILTER, ChannelGroups, Channels, Place
from slimbit.survey.channel_trace import WILD, Size, TensorChannels, Trace, compressed

NORMS = (_NormBase, nn.GroupNorm)
NORM_AXES = ("weight", "bias", "running_mean", "running_var")


@dataclass
class Operation:
    """An operation that has just run.

    Attributes:
        trace: Where it belongs.
        name: Without namespace and the underscore of in-place forms: ``relu``, ``max_pool2d_with_indices``.
        func: Torch's operator.
        args: What it was called with.
        kwargs: What it was called with, by name.
        values: Arguments by name, defaults included.
        outputs: The tensors that it made.
    """

    trace: Trace
    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    values: dict[str, Any]
    outputs: list[Tensor]
    proper: set[str] = field(default_factory=set)
    sizes: list[Size] = field(default_factory=list)
    undecided: tuple[int, ...] = ()
    even: dict[str, Channels] = field(default_factory=dict)

    @property
    def index(self) -> int:
        """Its number in the trace."""
        return len(self.trace.records)

    @property
    def channel_groups(self) -> ChannelGroups:
        """The channel_groups of the trace."""
        return self.trace.channel_groups

    @property
    def output(self) -> Tensor:
        """The first tensor that it made."""
        return self.outputs[0]

    @property
    def where(self) -> str:
        """For reasons: the operation and its module."""
        return self.trace.where(self.name)

    @property
    def writes(self) -> bool:
        """Whether it changes one of its arguments."""
        return bool(self.func._schema.is_mutable)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def tensors(self) -> Iterator[Tensor]:
        """Tensors among the arguments, also those in lists."""
        for value in self.values.values():
            yield from (x for x in (value if isinstance(value, list | tuple) else (value,)) if isinstance(x, Tensor))

    def channels(self, tensor: Any) -> TensorChannels | None:
        """As `Trace.channels`."""
        return self.trace.channels(tensor)

    def along(self, tensor: Tensor, axis: int) -> Channels | None:
        """The channels of a tensor along its one dimension that has some; `NOT_A_FILTER` where it carries none.

        None, and a reason for each channel, where units differ along other dimensions.
        """
        found = self.channels(tensor)
        if found is None:
            return np.full(tensor.shape[axis], NOT_A_FILTER)
        if any(self.channel_groups.varies(found.ids, d) for d in range(tensor.ndim) if d != axis):
            self.give_up()
            return None
        return self.line(found.ids, axis, tensor.shape[axis])

    def line(self, ids: Channels, axis: int, size: int) -> Channels:
        """Channels along one dimension, at the first place of every other."""
        first = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)[:, 0]
        return np.broadcast_to(first, size).copy()

    def put(self, ids: Channels | None, *, zero: bool, output: Tensor | None = None) -> None:
        """The output carries these channels; none where all of them are nobody's."""
        if ids is None or not bool((ids != NOT_A_FILTER).any()):
            return
        tensor = self.output if output is None else output
        channels = TensorChannels(ids, zero)
        if self.writes:
            self.trace.write(tensor, channels)
        else:
            self.trace.note(tensor, channels)

    def put_along(self, axis: int, ids: Channels, *, zero: bool, output: Tensor | None = None) -> None:
        """The output carries these channels along one dimension."""
        tensor = self.output if output is None else output
        self.put(ids.reshape([-1 if d == axis else 1 for d in range(tensor.ndim)]), zero=zero, output=output)

    def give_up(self, reason: str = "") -> None:
        """Channels of all arguments cannot be removed, and the output carries none."""
        for tensor in self.tensors():
            found = self.channels(tensor)
            if found is not None:
                self.channel_groups.pin(found.ids, reason or f"{self.where} does not keep channels apart")
        if self.writes:
            self.trace.spoil(self.output)

    def union_rows(self, rows: Channels, reason: str, slot: str = "") -> None:
        """The code takes rows of equal size: they lose the same places or, where that is known to do, as many.

        Args:
            rows: Channels, a row for each part.
            reason: Why they stay where a part of them is no filter.
            slot: Which of several it is.
        """
        if (self.index, slot) in self.trace.decisions.loose:
            self.channel_groups.rows.append(rows)
        else:
            self.even[slot] = rows
            self.channel_groups.union(rows, rows[:1], reason)

    def size(self, slot: str, value: int, ids: Channels) -> None:
        """A number in the code counts channels; where an attribute is known to hold it, that changes with them."""
        self.sizes.append(Size(slot, int(value), ids))
        name = self.trace.decisions.sizes.get((self.index, slot))
        if name is not None:
            self.channel_groups.assign((name, "size"), ids)
        source = self.trace.decisions.like.get((self.index, slot))
        if source is not None:
            found = self.trace.records[source[0]].outputs[source[1]][1]
            other = None if found is None else found.ids.ravel()
            if other is not None and len(other) == len(ids):
                self.channel_groups.union(ids, other, f"{self.where} takes the size of what is no filter")

    def bind(self, tensor: Tensor, ids: Channels) -> bool:  # noqa: PLR0911 - one per kind of parameter
        """A parameter or buffer that no layer owns has an entry for each of these channels; whether that is so.

        Args:
            tensor: The parameter, or a view or copy of it.
            ids: Channels that its entries meet; as many dimensions as the tensor, or of length 1.
        """
        names = self.trace.names(tensor)
        if len(names) != 1:
            return False
        path, _, attribute = names[0].rpartition(".")
        module = self.trace.modules[path]
        norm = isinstance(module, NORMS) and attribute in NORM_AXES
        entries = None if isinstance(module, _ConvNd | nn.Linear) else self.trace.entries(tensor)
        if entries is None:
            return False
        self.proper.add(names[0])
        if all((entries == entries.take([0], d)).all() for d in range(entries.ndim) if ids.shape[d] > 1):
            return True
        stored = getattr(module, attribute)
        met: Channels = np.full(stored.numel(), WILD)
        entries, ids = np.broadcast_arrays(entries, ids)
        met[entries] = ids
        self.channel_groups.union(met[entries], ids, f"{self.where} combines them with values that are no filters")
        found = met.reshape(tuple(stored.shape))
        if (found == WILD).any():
            return False
        ways = (self.channel_groups.roots(found), found, np.arange(found.size).reshape(found.shape))
        dims = next(wide for way in ways if (wide := [d for d, n in enumerate(compressed(way).shape) if n > 1]))
        if len(dims) != 1:
            return False
        place: Place = (path, "norm") if norm else (names[0], "parameter")
        line = self.line(found, dims[0], stored.shape[dims[0]])
        if not norm and self.channel_groups.dims.setdefault(names[0], dims[0]) != dims[0]:
            return False
        known = self.channel_groups.axes.get(place)
        if known is not None and len(known) != len(line):
            return False
        self.channel_groups.assign(place, line)
        return True

    def owner(self, tensor: Any, attribute: str, kind: Any) -> str | None:
        """Path of the module of that type whose attribute, all of it and nothing else, this tensor is."""
        names = self.trace.names(tensor)
        if len(names) != 1:
            return None
        path, _, found = names[0].rpartition(".")
        module = self.trace.modules[path]
        if found != attribute or not isinstance(module, kind) or tensor.numel() != getattr(module, found).numel():
            return None
        self.proper.add(names[0])
        return path

    def stray(self) -> None:
        """Note parameters that this operation has no business with."""
        for tensor in self.tensors():
            for name in self.trace.names(tensor):
                if name not in self.proper:
                    self.trace.strayed.setdefault(name, self.where)


def arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of an operator by the names of its schema, defaults included."""
    found: dict[str, Any] = {}
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args):
            found[argument.name] = args[place]
        else:
            found[argument.name] = kwargs.get(argument.name, argument.default_value)
    return found


def plain_name(func: Any) -> str:
    """An operator's name without namespace and the underscore of in-place forms."""
    name: str = func._overloadpacket.__name__
    return name if name.endswith("__") else name.removesuffix("_")


def numbers_among(values: dict[str, Any], *, shapes_only: bool) -> dict[str, Any]:
    """Arguments that are no tensors, and the numbers that the code made into tensors."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(value, Tensor) and not (
            isinstance(value, list | tuple) and any(isinstance(x, Tensor) for x in value)
        ):
            found[name] = value
        elif shapes_only and isinstance(value, Tensor) and value.device.type == "cpu" and value.numel() == 1:
            found[name] = value.item()
    return found
