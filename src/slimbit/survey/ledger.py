"""Bookkeeping of channels: which are the same unit, and which cannot be removed and why."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from slimbit.records.groups import FilterGroup, Member, Role

FREE = -1
"""A channel that is nobody's filter: of an image, of a constant, or of an operation that mixes filters."""

Place = tuple[str, Role]


class Ledger:
    """Union-find over channels, with what was found of each layer's axes.

    A channel is a number. `fix` says that it cannot be removed; `tie` that two are one unit.
    """

    def __init__(self) -> None:
        self.axes: dict[Place, list[int]] = {}
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> list[int]:
        """So many new channels."""
        first = len(self._parents)
        self._parents += range(first, first + count)
        return list(range(first, first + count))

    def root(self, channel: int) -> int:
        """The one channel that stands for all that are tied to this."""
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def fix(self, channels: Iterable[int], reason: str) -> None:
        """These cannot be removed; the first reason stays."""
        for channel in channels:
            if channel != FREE:
                self._reasons.setdefault(self.root(channel), reason)

    def tie(self, left: int, right: int, reason: str) -> int:
        """Two channels live or die together; one that meets no filter (`FREE`) cannot die, for that reason."""
        if FREE in (left, right):
            self.fix((left, right), reason)
            return FREE
        a, b = sorted((self.root(left), self.root(right)))
        if a != b:
            self._parents[b] = a
            why = self._reasons.pop(b, None)
            if why is not None:
                self._reasons.setdefault(a, why)
        return a

    def tie_all(self, left: Sequence[int], right: Sequence[int], reason: str) -> list[int]:
        """`tie` of each pair."""
        return [self.tie(a, b, reason) for a, b in zip(left, right, strict=True)]

    def meet(self, place: Place, channels: Sequence[int]) -> None:
        """An axis of a module meets channels; a second time it ties them to those of the first."""
        known = self.axes.setdefault(place, list(channels))
        if known is not channels:
            self.axes[place] = self.tie_all(known, channels, f"{place[0]!r} is also called on other channels")

    def reason(self, channel: int) -> str | None:
        """Why it cannot be removed; None if it can."""
        return self._reasons.get(self.root(channel)) if channel != FREE else None

    def groups(self) -> Iterator[FilterGroup]:
        """Removable units, gathered by the layers that make them, in order of first use."""
        reach: defaultdict[int, dict[Place, list[int]]] = defaultdict(dict)
        for place, channels in self.axes.items():
            for index, channel in enumerate(channels):
                if channel != FREE:
                    reach[self.root(channel)].setdefault(place, []).append(index)
        kinds: defaultdict[tuple[str, ...], list[dict[Place, list[int]]]] = defaultdict(list)
        for unit, places in reach.items():
            layers = tuple(name for name, role in places if role == "filters")
            if layers and unit not in self._reasons:
                kinds[layers].append(places)
        taken: defaultdict[str, int] = defaultdict(int)
        for layers, units in kinds.items():
            taken[layers[0]] += 1
            name = layers[0] if taken[layers[0]] == 1 else f"{layers[0]}#{taken[layers[0]]}"
            yield FilterGroup(name=name, units=len(units), members=tuple(self._members(units)))

    def _members(self, units: Sequence[dict[Place, list[int]]]) -> Iterator[Member]:
        for place, channels in self.axes.items():
            if any(place in unit for unit in units):
                found = tuple(tuple(unit.get(place, ())) for unit in units)
                yield Member(name=place[0], role=place[1], size=len(channels), channels=found)
