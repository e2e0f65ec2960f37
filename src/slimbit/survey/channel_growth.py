"""More of every unit: how many copies each gets, which shapes follow from that, and a network with them.

A trace tells which entries of which tensor belong to which unit. So if every unit is given copies, the shape of every
tensor is known in advance.
"""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from slimbit.survey.axes import find_axis
from slimbit.survey.channel_groups import NOT_A_FILTER, Channels
from slimbit.survey.channel_trace import TensorChannels, Trace

MOST, COPIES = 997, 1 + 64 * 3 * 5 * 7


class Growth:
    """How many copies every unit gets."""

    def __init__(self, trace: Trace, copies: Callable[[int], int]) -> None:
        self._ledger = trace.channel_groups
        roots = trace.channel_groups.all_roots()
        self._copies = np.ones(len(roots), dtype=np.int64)
        for root in np.unique(roots).tolist():
            if root != NOT_A_FILTER:
                self._copies[root] = copies(root)

    def counts(self, ids: Channels) -> Channels:
        """Copies of each channel."""
        counts: Channels = self._copies[self._ledger.roots(ids)]
        return counts

    def size(self, ids: Channels) -> int:
        """How many entries channels become."""
        return int(self.counts(ids).sum())

    def shapes(self, tensor: Tensor, channels: TensorChannels | None) -> list[tuple[int, ...]]:
        """Shapes that a tensor may have: several while it is open which dimension grows, none if any will do."""
        shape = tuple(tensor.shape)
        if channels is None:
            return [shape]
        counts, roots = self.counts(channels.ids), self._ledger.roots(channels.ids)
        if int(counts.max()) == 1:
            return [shape]
        wide = [d for d, n in enumerate(roots.shape) if n > 1]
        found = []
        for d in wide:
            if all((roots == roots.take([0], e)).all() for e in wide if e != d):
                line = np.moveaxis(counts, d, 0).reshape(counts.shape[d], -1)[:, 0]
                found.append((*shape[:d], int(line.sum()), *shape[d + 1 :]))
        whole = [n if d in wide else 1 for d, n in enumerate(shape)]
        total = int(np.broadcast_to(counts, whole).sum())
        return found or [(*shape[:d], total * shape[d] // math.prod(whole), *shape[d + 1 :]) for d in wide]


def even(trace: Trace) -> Growth:
    """As many copies of every unit that may be removed, and of those that views split in a way that is not decided.

    So many that what a number up to 8 (or 64) divides is still divided by it, whatever else stays as it is.
    """
    open_ = {
        root
        for record in trace.records if record.undecided
        for _, channels in record.outputs if channels is not None
        for root in trace.channel_groups.roots(channels.ids).ravel().tolist()
    }  # fmt: skip
    copies = COPIES if trace.shapes_only else 3
    return Growth(trace, lambda root: copies if root in open_ or trace.channel_groups.reason(root) is None else 1)


def mixed(trace: Trace) -> Growth:
    """A number of its own of copies of every unit that may be removed; units of a family have the same."""
    numbers = random.Random(len(trace.records))  # noqa: S311 - no secret
    known: dict[int, int] = {}
    leaders = trace.channel_groups.families()
    most = MOST if trace.shapes_only else 3

    def copies(root: int) -> int:
        if trace.channel_groups.reason(root) is not None:
            return 1
        number = known.setdefault(leaders.get(root, root), numbers.randint(2, most))
        return 1 + (COPIES - 1) * (1 + number % 7) if root in leaders else number

    return Growth(trace, copies)


def grow(network: nn.Module, trace: Trace, growth: Growth) -> None:
    """Give every unit its copies, in place."""
    modules = dict(network.named_modules())
    for place, ids in trace.channel_groups.axes.items():
        (name, role), counts = place, growth.counts(ids)
        if int(counts.max(initial=1)) > 1 and role != "window":  # a kernel slides over any number of channels
            axis = find_axis(modules, name, role, len(ids), trace.channel_groups.dim(place))
            if trace.shapes_only and role != "padding":  # which is told apart by its places
                places = torch.empty(int(counts.sum()), dtype=torch.long, device="meta")
            else:
                places = torch.from_numpy(np.repeat(np.arange(len(ids)), counts))
            axis.take(places, whole_groups=axis.groups > 1 and name not in trace.channel_groups.thinned)
