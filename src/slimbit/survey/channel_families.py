"""Families: channels of which the code takes equal parts (shuffles, chunks, convolutions in groups).

Which units of a family may stay is more than a matter of taste: after half of the filters are gone, a shuffle puts
the others elsewhere, and another part of them is in the first half. So the network is run with each family at the
size that is asked for, and every unit of that run is matched with one of the whole network that meets the same
operations. Of those that meet the same operations any may stay; how many, and in which order their channels then
lie, the run tells.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from math import gcd

import numpy as np
import torch
from torch import nn

from slimbit.records.groups import Family, Fit
from slimbit.survey.axes import find_axis
from slimbit.survey.channel_groups import Channels
from slimbit.survey.channel_run import Runs
from slimbit.survey.channel_trace import Decisions, Trace


class Families:
    """The families of a traced network.

    Attributes:
        decisions: What is known of the network's operations.
        trace: Its trace with these decisions.
        groups: All groups of the network; those of families hold units that meet the same operations.
        families: The families.
        fit: As in `slimbit.records.groups.FilterGroups`.
    """

    def __init__(self, runs: Runs, decisions: Decisions, trace: Trace) -> None:
        self._runs, self.decisions, self.trace = runs, decisions, trace
        self._leaders = trace.channel_groups.families()
        self._kinds = _kinds(trace, self._leaders)
        fixed = {kind for root, kind in self._kinds.items() if trace.channel_groups.reason(root) is not None}
        self._fix(fixed, "others that meet the same operations cannot be removed")
        stuck = {self._leaders_of_families[number] for number in self._stuck()}
        if stuck:
            fixed |= {kind for root, kind in self._kinds.items() if self._leaders[root] in stuck}
            self._fix(fixed, "no smaller size is found at which the code takes parts of them rightly")

    def _fix(self, kinds: set[int], reason: str) -> None:
        """Units of these kinds stay; the others are the groups."""
        channel_groups = self.trace.channel_groups
        self._fixed: defaultdict[int, list[int]] = defaultdict(list)
        for root, kind in sorted(self._kinds.items()):
            if kind in kinds:
                channel_groups.pin(np.array([root]), reason)
                self._fixed[kind].append(root)
        free = {root: kind for root, kind in self._kinds.items() if kind not in kinds}
        found = list(channel_groups.units(free))
        self.groups = tuple(group for group, units in found if group.units > 1 or units[0] in free)
        self._names = {free[units[0]]: group for group, units in found if units[0] in free}
        members: defaultdict[int, list[str]] = defaultdict(list)
        for group, units in found:
            if units[0] in free:
                members[self._leaders[units[0]]].append(group.name)
        self._steps = {leader: self._shares(leader) for leader in members}
        self._leaders_of_families = tuple(self._steps)
        self.families = tuple(Family(groups=tuple(members[leader]), steps=n) for leader, n in self._steps.items())
        self.fit = cache(self._fit)

    def _stuck(self) -> list[int]:
        """Families that no smaller size is found for: about half of it, or a few others."""
        whole = [family.steps for family in self.families]
        if not whole or self.fit(tuple(max(1, n // 2) for n in whole)) is not None:
            return []
        found = []
        for number, steps in enumerate(whole):
            half = steps // 2
            tries = [n for n in (half, half + 1, half - 1, steps - 1, 1) if 0 < n < steps]
            if all(self.fit((*whole[:number], n, *whole[number + 1 :])) is None for n in dict.fromkeys(tries)):
                found.append(number)
        return found

    def _shares(self, leader: int) -> int:
        """Into how many equal shares all axes and rows of a family can be cut."""
        channel_groups = self.trace.channel_groups
        lines = [*channel_groups.axes.values(), *(row for rows in channel_groups.rows for row in rows)]
        return gcd(*(int(self._removable(line, leader).sum()) for line in lines))

    def _removable(self, line: Channels, leader: int) -> Channels:
        """Which entries of a line are removable units of a family."""
        roots = self.trace.channel_groups.roots(line).ravel().tolist()
        return np.array([self._leaders.get(root) == leader and self._kinds[root] not in self._fixed for root in roots])

    def _fit(self, steps: tuple[int, ...]) -> Fit | None:
        """What stays of the families at these sizes; None where the code does not follow or nothing matches."""
        sizes = dict(zip(self._steps, steps, strict=True))
        small = self._runs.changed(self.decisions, lambda network: self._shrink(network, sizes))
        if small is None or [r.name for r in small.records] != [r.name for r in self.trace.records]:
            return None
        counts = {group.name: 0 for group in self._names.values()}
        seen: defaultdict[int, int] = defaultdict(int)
        stands: dict[int, tuple[str, int]] = {}
        for root, kind in sorted(_kinds(small, small.channel_groups.families()).items()):
            if kind in self._fixed and seen[kind] < len(self._fixed[kind]):
                stands[root] = ("", self._fixed[kind][seen[kind]])
            elif kind in self._names and seen[kind] < self._names[kind].units:
                stands[root] = (self._names[kind].name, seen[kind])
                counts[self._names[kind].name] += 1
            else:
                return None
            seen[kind] += 1
        if any(seen[kind] < len(roots) for kind, roots in self._fixed.items()):
            return None
        channel_groups = self.trace.channel_groups
        lines = {}
        for place, line in channel_groups.axes.items():
            roots = channel_groups.roots(line).tolist()
            if any(root in self._leaders for root in roots):
                other = small.channel_groups.roots(small.channel_groups.axes[place]).tolist()
                if sum(root not in stands for root in other) != sum(root not in self._leaders for root in roots):
                    return None
                lines[place] = tuple(self._entries(roots, other, stands))
        return Fit(counts=counts, lines=lines)

    def _entries(
        self, line: list[int], small: list[int], stands: dict[int, tuple[str, int]]
    ) -> Iterator[tuple[str, int, int]]:
        """What each place of a line in the small network is in the whole one."""
        others = (place for place, root in enumerate(line) if root not in self._leaders)
        met: defaultdict[int, int] = defaultdict(int)
        for root in small:
            name, number = stands.get(root, ("", -1))
            if root not in stands:
                yield "", next(others), 0
            elif not name:
                yield "", [place for place, other in enumerate(line) if other == number][met[root]], 0
            else:
                yield name, number, met[root]
            met[root] += 1

    def _shrink(self, network: nn.Module, sizes: dict[int, int]) -> None:
        """Cut every axis to what it has at these sizes; which of its entries is all the same for shapes alone."""
        modules, channel_groups = dict(network.named_modules()), self.trace.channel_groups
        for place, line in channel_groups.axes.items():
            name, role = place
            if role == "window":
                continue  # a kernel slides over any number of channels
            keep = np.ones(len(line), dtype=bool)
            for leader, size in sizes.items():
                places, whole = np.flatnonzero(self._removable(line, leader)), self._steps[leader]
                ranks = np.arange(len(places))
                keep[places] = (ranks + 1) * size // whole > ranks * size // whole
            if not keep.all():
                axis = find_axis(modules, name, role, len(line), channel_groups.dim(place))
                whole_groups = axis.groups > 1 and name not in channel_groups.thinned
                axis.take(torch.from_numpy(np.flatnonzero(keep)), whole_groups=whole_groups)


def _kinds(trace: Trace, leaders: dict[int, int]) -> dict[int, int]:
    """For each of these units a number of the tensors and convolution groups that it is in: equal if these are."""
    found = dict.fromkeys(leaders, 0)

    def add(ids: Channels, *what: object) -> None:
        roots, counts = np.unique(trace.channel_groups.roots(ids), return_counts=True)
        for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
            if root in found:
                found[root] = hash((found[root], count, what))

    for index, record in enumerate(trace.records):
        for number, (_, channels) in enumerate(record.outputs):
            if channels is not None:
                add(channels.ids, index, number)
    names = sorted(trace.channel_groups.thinned)
    for path in names:
        groups = int(trace.modules[path].groups)  # type: ignore[arg-type] # of a convolution
        for role in ("inputs", "filters"):
            for number, row in enumerate(trace.channel_groups.axes[path, role].reshape(groups, -1)):
                add(row, names.index(path), role == "inputs", number)
    return found
