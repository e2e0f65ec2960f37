"""What is known while a network runs: the channels that its tensors carry, and what its operations did."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimbit.survey.channel_groups import NOT_A_FILTER, ChannelGroups, Channels

Key = tuple[int, int, tuple[int, ...], tuple[int, ...]]
WILD = -2
"""A channel that nothing has said anything about yet."""
ALL = "all"
"""Ends the name of a size that counts all channels, which the code need not say (``weight[n:]``)."""
ENTRIES = 1 << 22
"""Tensors of more entries are not followed entry by entry (writing into a part of them, free parameters)."""


@dataclass(frozen=True)
class TensorChannels:
    """Which channel each entry of a tensor is.

    Attributes:
        ids: As many dimensions as the tensor; of length 1 where entries along a dimension are of one channel.
        zero: Whether entries are zero where their filter is masked.
    """

    ids: Channels
    zero: bool = False


@dataclass
class Decisions:
    """What runs at other sizes have shown of single operations, by their number in the trace.

    Attributes:
        follow: Of a view that splits channels over several dimensions, the one that becomes shorter.
        parts: Slices and splits whose parts lose the same units: the code computes their sizes from the whole.
        refused: Operations that cannot follow other sizes of what they read, and why.
        opaque: Those of them that cannot make other sizes either.
        sizes: Attributes that hold a size, by operation and which of its sizes it is.
        like: Sizes that the code takes from other channels, of which as many stay: a record and which of its outputs.
        banned: Attributes that are used for something else.
        loose: Parts of equal size (see `Record.even`) that lose as many places, not the same.
        mirrored: Of `parts`, those of two halves in which the first of one and the last of the other are lost together.
        thin: Which grouped convolutions keep their groups and lose places of each; the others lose whole groups.
        choices: For views whose sizes are all attributes, which dimension and attribute may change, best first.
    """

    follow: dict[int, int] = field(default_factory=dict)
    parts: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    opaque: set[int] = field(default_factory=set)
    sizes: dict[tuple[int, str], str] = field(default_factory=dict)
    like: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)
    banned: set[str] = field(default_factory=set)
    loose: set[tuple[int, str]] = field(default_factory=set)
    mirrored: set[int] = field(default_factory=set)
    thin: dict[str, bool] = field(default_factory=dict)
    choices: dict[int, list[tuple[int, str]]] = field(default_factory=dict)

    def refuse(self, index: int, why: str) -> None:
        """An operation cannot follow other sizes; at the second time, it is not followed at all."""
        if index in self.refused:
            self.opaque.add(index)
        self.refused.setdefault(index, why)


@dataclass(frozen=True)
class Size:
    """A number among an operation's arguments that counts channels.

    Attributes:
        slot: Which number it is.
        value: The number.
        ids: The channels that it counts.
    """

    slot: str
    value: int
    ids: Channels


@dataclass(frozen=True)
class Record:
    """What is needed of an operation to compare it with the same one at other sizes.

    Attributes:
        name: Of the operation.
        where: The operation and its module, for reasons.
        path: Paths of the running modules, innermost last.
        numbers: Its arguments but tensors.
        inputs: Channels of its arguments.
        outputs: The tensors that it made, with their channels.
        sizes: Numbers that count channels.
        undecided: Dimensions of the output over which it splits channels.
        even: Channels of which it takes parts of equal size that lose the same places, by which of its parts these are;
            or those of a convolution that loses whole groups, by its path.
        known: Whether the shapes of its outputs follow from those channels.
        call: Which call of a function of torch it is part of.
    """

    name: str
    where: str
    path: tuple[str, ...]
    numbers: dict[str, Any]
    inputs: tuple[TensorChannels, ...]
    outputs: tuple[tuple[Tensor, TensorChannels | None], ...]
    sizes: tuple[Size, ...]
    undecided: tuple[int, ...]
    even: dict[str, Channels]
    known: bool
    call: int


@dataclass(frozen=True)
class _Moved:
    """A tensor whose entries are entries of another, and how it is made."""

    tensor: Tensor
    parent: Tensor
    move: Callable[[Tensor], Tensor]


@dataclass
class Trace:
    """What is known while the network runs.

    Attributes:
        modules: Modules by path.
        owners: Names of the parameters and buffers in each storage.
        decisions: What is known of single operations before the run.
        channel_groups: Which channels are one unit.
        path: Paths of the running modules, innermost last.
        strayed: Parameters that met an operation which their module does not make by itself, and which.
        shapes_only: Whether tensors are without values.
        numbers: Values of integer buffers.
        records: Operations in order.
        results: What each call of a function of torch returned.
    """

    modules: dict[str, nn.Module]
    owners: dict[int, list[str]]
    decisions: Decisions = field(default_factory=Decisions)
    channel_groups: ChannelGroups = field(default_factory=ChannelGroups)
    path: list[str] = field(default_factory=lambda: [""])
    strayed: dict[str, str] = field(default_factory=dict)
    shapes_only: bool = True
    numbers: dict[str, Channels] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    _known: dict[Key, tuple[Tensor, TensorChannels]] = field(default_factory=dict)
    _constants: dict[Key, tuple[Tensor, bool]] = field(default_factory=dict)
    _moved: dict[Key, _Moved] = field(default_factory=dict)
    _written: set[int] = field(default_factory=set)
    _unwritten: dict[Key, tuple[Channels, bool]] = field(default_factory=dict)

    def channels(self, tensor: Any) -> TensorChannels | None:
        """The channels of a tensor; None where it carries none."""
        if not isinstance(tensor, Tensor):
            return None
        found = self._known.get(_key(tensor))
        if found is None and storage_of(tensor) in self._written and _key(tensor) in self._moved:
            return self._seen_anew(self._moved[_key(tensor)])
        return None if found is None else found[1]

    def _seen_anew(self, view: _Moved) -> TensorChannels | None:
        """Channels of a view whose memory was written to since it was made."""
        source = self.channels(view.parent)
        if source is None or view.parent.numel() > ENTRIES:
            return None
        full = np.broadcast_to(source.ids, view.parent.shape).copy()
        return TensorChannels(compressed(view.move(torch.from_numpy(full)).numpy()), source.zero)

    def note(self, tensor: Tensor, channels: TensorChannels) -> None:
        """A tensor carries these channels; tensors are kept, so that no memory is used twice."""
        assert all(a in (1, n) for a, n in zip(channels.ids.shape, tensor.shape, strict=True))
        self._known[_key(tensor)] = (tensor, channels)
        self._constants.pop(_key(tensor), None)

    def constant(self, tensor: Tensor) -> bool | None:
        """Whether a tensor that is the same number everywhere is zero; None if it is no such tensor."""
        found = self._constants.get(_key(tensor))
        return None if found is None else found[1]

    def note_constant(self, tensor: Tensor, *, zero: bool) -> None:
        """A tensor is the same number everywhere, whatever its shape."""
        self._constants[_key(tensor)] = (tensor, zero)

    def note_move(self, tensor: Tensor, parent: Tensor, move: Callable[[Tensor], Tensor]) -> None:
        """A tensor's entries are those of another in another order."""
        if _key(tensor) != _key(parent):
            self._moved[_key(tensor)] = _Moved(tensor, parent, move)
            if self.names(parent):
                self.owners[storage_of(tensor)] = self.names(parent)

    def write(self, tensor: Tensor, channels: TensorChannels) -> None:
        """An operation has overwritten a tensor, which may be part of another, with these channels."""
        storage = storage_of(tensor)
        before = {key: known for key, (_, known) in self._known.items() if key[0] == storage}
        for key in before:
            del self._known[key]  # what else lies in this memory is looked up anew
        self._written.add(storage)
        self.note(tensor, channels)
        while (view := self._moved.get(_key(tensor))) is not None and storage_of(view.parent) == storage:
            if view.parent.numel() > ENTRIES:
                self.channel_groups.pin(channels.ids, f"{self.where('copy')} writes into a part of a large tensor")
                return
            old, zero = before.get(_key(view.parent)), self.constant(view.parent)
            start = old.ids if old is not None else np.array(NOT_A_FILTER if zero is None else WILD)
            if _key(view.parent) in self._unwritten:
                start, zero = self._unwritten[_key(view.parent)]
            full = np.broadcast_to(start, view.parent.shape).copy()
            places = view.move(torch.arange(full.size).reshape(full.shape)).numpy()
            full.ravel()[places] = np.broadcast_to(channels.ids, tensor.shape)
            ids = compressed(full)
            self._unwritten[_key(view.parent)] = ids.copy(), bool(zero)
            ids[ids == WILD] = NOT_A_FILTER
            still = channels.zero and zero is not False and (old is None or old.zero)
            tensor, channels = view.parent, TensorChannels(ids, still)
            self.note(tensor, channels)

    def unwritten(self, tensor: Tensor, axis: int, places: Channels) -> bool | None:
        """Whether places of a tensor that is filled part by part are zero, as it was made; None if they were filled."""
        ids, zero = self._unwritten.get(_key(tensor), (np.array([NOT_A_FILTER]), False))
        return zero if ids.ndim > axis and (ids.take(places, axis) == WILD).all() else None

    def is_part_beside(self, tensor: Tensor) -> bool:
        """Whether a tensor is a part of another that has all of its channels: other entries of them stay."""
        base = tensor
        while (view := self._moved.get(_key(base))) is not None and storage_of(view.parent) == storage_of(tensor):
            base = view.parent
        whole, part = self.channels(base), self.channels(tensor)
        return base is not tensor and whole is not None and part is not None and part.ids.size >= whole.ids.size

    def spoil(self, tensor: Tensor) -> None:
        """A constant has been written to."""
        for key in [key for key in self._constants if key[0] == storage_of(tensor)]:
            del self._constants[key]

    def names(self, tensor: Any) -> list[str]:
        """Names of the parameters or buffers that share a tensor's memory, or that it is a copy of."""
        return self.owners.get(storage_of(tensor), []) if isinstance(tensor, Tensor) else []

    def entries(self, tensor: Tensor) -> Channels | None:
        """Which entry of the parameter that it is made of each entry of a tensor is; None where that is unknown."""
        path, _, attribute = self.names(tensor)[0].rpartition(".")
        stored: Tensor = getattr(self.modules[path], attribute)
        view = self._moved.get(_key(tensor))
        if stored.numel() > ENTRIES:
            return None
        if view is None:
            places: Channels = np.arange(stored.numel()).reshape(tuple(stored.shape))
            return places if tensor.shape == stored.shape else None
        before = self.entries(view.parent)
        return None if before is None else view.move(torch.from_numpy(before.copy())).numpy()

    def where(self, name: str) -> str:
        """For reasons: an operation and its module."""
        path = next((p for p in reversed(self.path) if p), "")
        return f"{name} in {path!r}" if path else name


def compressed(ids: Channels) -> Channels:
    """Channels without the dimensions along which they are the same (length 1), `WILD` entries like any other's."""
    for axis, size in enumerate(ids.shape):
        if size > 1:
            most = ids.max(axis, keepdims=True)
            if bool(((ids == most) | (ids == WILD)).all()):
                ids = most
    return ids.copy()


def storage_of(tensor: Tensor) -> int:
    """Identity of a tensor's memory."""
    key: int = tensor.untyped_storage()._cdata
    return key


def _key(tensor: Tensor) -> Key:
    return (storage_of(tensor), int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))
