"""Bookkeeping of channels: which are the same unit, and which cannot be removed and why."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from slimbit.records.groups import FilterGroup, Member, Role

NOT_A_FILTER = -1
"""A channel that is nobody's filter: of an image, of a constant, or of an operation that mixes filters."""

Channels = NDArray[np.int64]
"""Channels by number, `NOT_A_FILTER` where there is none."""
Place = tuple[str, Role]
START = 1024


class ChannelGroups:
    """Union-find over channels, with what was found of each layer's axes.

    A channel is a number. `pin` says that it cannot be removed; `union` that two are one unit.

    Attributes:
        axes: For each axis of a module or parameter its channels.
        dims: Which dimension of a parameter is its axis; of a window and an order, how many dimensions of
            its input lie behind it.
        thinned: Grouped convolutions that keep their groups and lose places of each.
        rows: Channels of which the code takes parts of equal size, part by part; kept units must fill the parts evenly.
    """

    def __init__(self) -> None:
        self.axes: dict[Place, Channels] = {}
        self.dims: dict[str, int] = {}
        self.thinned: set[str] = set()
        self.rows: list[Channels] = []
        self._parents: Channels = np.full(
            START, NOT_A_FILTER
        )  # the last entry stays `NOT_A_FILTER`, so that `NOT_A_FILTER` finds itself
        self._count = 0
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> Channels:
        """So many new channels."""
        channels: Channels = np.arange(self._count, self._count + count)
        self._count += count
        if self._count >= len(self._parents):
            self._parents = np.concatenate((self._parents[: channels[0]], np.full(2 * self._count, NOT_A_FILTER)))
        self._parents[channels] = channels
        return channels

    def root(self, channel: int) -> int:
        """The one channel that stands for all that are joined to this; `NOT_A_FILTER` stands for itself."""
        parents = self._parents
        while (parent := int(parents[channel])) != channel:
            parents[channel] = parents[parent]
            channel = parent
        return channel

    def roots(self, channels: Channels) -> Channels:
        """`root` of each."""
        found = self._parents[channels]
        while bool(((above := self._parents[found]) != found).any()):
            found = above
        self._parents[channels] = found
        return found

    def varies(self, channels: Channels, axis: int) -> bool:
        """Whether units differ along an axis."""
        if channels.shape[axis] < 2:
            return False
        roots = self.roots(channels)
        return bool((roots != roots.take([0], axis)).any())

    def pin(self, channels: Channels, reason: str) -> None:
        """These cannot be removed; the first reason stays."""
        for channel in np.unique(channels).tolist():
            if channel != NOT_A_FILTER:
                self._reasons.setdefault(self.root(channel), reason)

    def union(self, left: Channels, right: Channels, reason: str) -> Channels:
        """Channels live or die together pair by pair; what meets `NOT_A_FILTER` cannot die, for that reason.

        Returns:
            The channels of both, of the broadcast shape.
        """
        left, right = np.broadcast_arrays(left, right)
        for a, b in {*zip(left.ravel().tolist(), right.ravel().tolist(), strict=True)}:
            if a != b:
                self._union(a, b, reason)
        return np.where(right == NOT_A_FILTER, NOT_A_FILTER, left)

    def _union(self, left: int, right: int, reason: str) -> None:
        if NOT_A_FILTER in (left, right):
            self.pin(np.array([left, right]), reason)
            return
        a, b = sorted((self.root(left), self.root(right)))
        if a != b:
            self._parents[b] = a
            why = self._reasons.pop(b, None)
            if why is not None:
                self._reasons.setdefault(a, why)

    def assign(self, place: Place, channels: Channels) -> Channels:
        """Give an axis of a module its channels, joined to those of the first time. Returns them."""
        known = self.axes.get(place)
        if known is not None and known is not channels:
            channels = self.union(known, channels, f"{place[0]!r} is also called on other channels")
        self.axes[place] = channels
        return channels

    def dim(self, place: Place) -> int | None:
        """The entry of `dims` for an axis; None where it has none."""
        name, role = place
        return self.dims.get(name) if role in ("parameter", "window", "order") else None

    def all_roots(self) -> Channels:
        """`root` of every channel there is, and `NOT_A_FILTER` in the end."""
        return self.roots(np.array([*range(self._count), NOT_A_FILTER]))

    def reason(self, channel: int) -> str | None:
        """Why it cannot be removed; None if it can."""
        return self._reasons.get(self.root(channel)) if channel != NOT_A_FILTER else None

    def families(self) -> dict[int, int]:
        """For the root of every channel in `rows` one number of all that share rows with it, directly or not."""
        leader: dict[int, int] = {}
        gathered: defaultdict[int, list[int]] = defaultdict(list)
        for row in self.rows:
            found = [root for root in np.unique(self.roots(row)).tolist() if root != NOT_A_FILTER]
            old = {leader[root] for root in found if root in leader}
            together = [*dict.fromkeys([*found, *(other for one in old for other in gathered.pop(one))])]
            gathered[together[0]] = together
            leader |= dict.fromkeys(together, together[0])
        return leader

    def units(self, classes: Mapping[int, int] | None = None) -> Iterator[tuple[FilterGroup, list[int]]]:
        """Removable units, gathered by the axes that they reach, in order of first use, and their roots.

        So whatever units of a group are removed, no axis loses its last entry as long as each group keeps one.

        Args:
            classes: Units of a group are also of one class, where they have one.
        """
        reach: defaultdict[int, dict[Place, list[int]]] = defaultdict(dict)
        for place, channels in self.axes.items():
            for index, root in enumerate(self.roots(channels).tolist()):
                if root != NOT_A_FILTER:
                    reach[root].setdefault(place, []).append(index)
        kinds: defaultdict[tuple[tuple[Place, ...], int | None], list[int]] = defaultdict(list)
        for unit, places in reach.items():
            if unit not in self._reasons and any(role == "filters" for _, role in places):
                kinds[tuple(places), (classes or {}).get(unit)].append(unit)
        taken: defaultdict[str, int] = defaultdict(int)
        for (key, _), units in kinds.items():
            layer = next(name for name, role in key if role == "filters")
            taken[layer] += 1
            name = layer if taken[layer] == 1 else f"{layer}#{taken[layer]}"
            members = tuple(self._members(key, [reach[unit] for unit in units]))
            yield FilterGroup(name=name, units=len(units), members=members), units

    def _members(self, places: Sequence[Place], units: Sequence[dict[Place, list[int]]]) -> Iterator[Member]:
        for place in places:
            name, role = place
            found = tuple(tuple(unit[place]) for unit in units)
            size = len(self.axes[place])
            yield Member(name=name, role=role, size=size, channels=found, dim=self.dim(place))
