"""Which filters live or die together: one pass of the network's shapes in which every channel keeps its name.

Filters get numbers. Each operation that runs carries them on, filter_groups those that it adds, or says that it mixes
them; an operation without a rule makes the filters that reach it fixed. So a unit is removable only if everything
between the layers that make it and the layers that read it is understood, and the rest says why it is not.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import fields, replace

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from slimbit.numerics.copies import plain_network
from slimbit.records.errors import InputError
from slimbit.records.groups import FilterGroups
from slimbit.survey.channel_families import Families
from slimbit.survey.channel_groups import ChannelGroups, Channels
from slimbit.survey.channel_growth import even, mixed
from slimbit.survey.channel_orders import with_orders
from slimbit.survey.channel_run import LEFT_EMPTY, Runs
from slimbit.survey.channel_sizes import judge, refusal
from slimbit.survey.channel_trace import Decisions
from slimbit.survey.module import refuse_what_cannot_be_counted
from slimbit.survey.trace import Inputs

MOST_RUNS, MOST_LOOSENED = 24, 6
"""Runs at other sizes until what still does not follow is left to whoever tries the smaller network."""
NEVER_CALLED = "it is never called"


def find_filter_groups(model: nn.Module, example_input: Inputs, *, name: str = "") -> FilterGroups:
    """Groups of filters that live or die together, and everything that loses entries with them.

    Residual sums tie filters one by one, concatenations put them side by side, a flattened image gives each filter
    several inputs of a linear layer, depthwise and grouped convolutions tie all inputs and filters of a group.
    Inputs and outputs of the network are never part of a group.

    Args:
        model: Any module; it is not run, not changed. Parametrizations count as the weights that they compute.
        example_input: One example with its batch dimension; a tuple or dict for several arguments.
        name: Name for people; default: the type of the module.

    Returns:
        The groups, and why the filters that are in none cannot be removed.

    Raises:
        InputError: The network does not run on the example.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
    >>> group = find_filter_groups(net, torch.zeros(1, 3, 4, 4)).groups[0]
    >>> [(m.name, m.role, m.channels[1]) for m in group.members]
    [('0', 'filters', (1,)), ('1', 'norm', (1,)), ('4', 'inputs', (4, 5, 6, 7))]
    """
    refuse_what_cannot_be_counted(model)
    network = plain_network(model)
    found = _settled(network, example_input)
    return FilterGroups(
        network=name or type(network).__name__,
        groups=found.groups,
        fixed=dict(_fixed(network, found)),
        families=found.families,
        fit=found.fit,
    )


def _fixed(network: nn.Module, found: Families) -> Iterator[tuple[str, str]]:
    channel_groups, removable = found.trace.channel_groups, {layer for group in found.groups for layer in group.layers}
    for path, module in network.named_modules():
        if not isinstance(module, _ConvNd | nn.Linear):
            continue
        filters = channel_groups.axes.get((path, "filters"))
        if filters is None:
            where = found.trace.strayed.get(f"{path}.weight".lstrip("."))
            yield path, f"its weight is used by {where}" if where else NEVER_CALLED
            continue
        reason = next((why for f in filters.tolist() if (why := channel_groups.reason(f)) is not None), None)
        if reason is not None:
            yield path, reason
        elif path not in removable:
            yield path, "its filters live or die together"


def _settled(network: nn.Module, example_input: Inputs) -> Families:
    """The network's groups, after runs at other sizes have shown which of its numbers follow them.

    Where parts of channels that lose the same places end up as one unit (shuffle upon shuffle), they are asked to lose
    as many places instead. Where channels still stay that a module only reorders, it is asked to keep their order, and
    halves of them lose mirrored places.
    """
    best = _loosened(Runs(network, example_input), Decisions())
    other = with_orders(network, best.trace)
    if other is None:
        return best
    try:
        runs = Runs(other, example_input)
    except InputError:  # a module that reorders now these and now other channels
        return best
    found = _best_views(runs, Decisions())
    halves = {
        index
        for index, record in enumerate(found.trace.records)
        for rows in record.even.values()
        if index in found.decisions.parts and _is_fixed(found.trace.channel_groups, rows)
    }
    found = _loosened(runs, Decisions(mirrored=halves))
    return found if _count(found) > _count(best) else best


def _loosened(runs: Runs, start: Decisions) -> Families:
    """The groups, where parts that would leave nothing if they lost the same places lose as many."""
    best = found = _best_views(runs, start)
    for _ in range(MOST_LOOSENED):
        channel_groups = found.trace.channel_groups
        even = {
            (index, slot)
            for index, record in enumerate(found.trace.records)
            for slot, rows in record.even.items()
            if _is_fixed(channel_groups, rows, LEFT_EMPTY)
        }
        if not even:
            break
        thin = found.decisions.thin | {slot: True for _, slot in even if slot in found.decisions.thin}
        found = _best_views(runs, replace(found.decisions, loose=found.decisions.loose | even, thin=thin))
        if _count(found) > _count(best):
            best = found
    return best


def _best_views(runs: Runs, start: Decisions) -> Families:
    """Where a view may follow in several ways, and the first leads to fixed channels, the others are tried."""
    found = _decided(runs, start)
    while True:
        ways = found.decisions.choices
        records, channel_groups = found.trace.records, found.trace.channel_groups
        blocked = [
            i for i, left in ways.items()
            if len(left) > 1 and any(_is_fixed(channel_groups, channels.ids) for channels in records[i].inputs)
        ]  # fmt: skip
        if not blocked:
            return found
        ways = {i: left[1:] if i in blocked else left for i, left in ways.items()}
        other = _decided(runs, Decisions(choices=ways, loose=start.loose, thin=start.thin, mirrored=start.mirrored))
        found.decisions.choices = ways
        if _count(other) > _count(found):
            found = other


def _is_fixed(channel_groups: ChannelGroups, ids: Channels, why: str = "") -> bool:
    """Whether some channels cannot be removed, for a reason that ends so."""
    reasons = (channel_groups.reason(channel) for channel in np.unique(channel_groups.roots(ids)).tolist())
    return any(reason is not None and reason.endswith(why) for reason in reasons)


def _count(found: Families) -> int:
    """Number of filters that can be removed."""
    return sum(len(unit) for group in found.groups for member in group.of("filters") for unit in member.channels)


def _decided(runs: Runs, start: Decisions) -> Families:
    """The groups once nothing more is found about operations."""
    decisions = Decisions(**{field.name: copy(getattr(start, field.name)) for field in fields(Decisions)})
    trace = runs.first if not (start.loose or start.choices) else runs.traced(decisions)
    for _ in range(MOST_RUNS):
        undecided = {i: record for i, record in enumerate(trace.records) if record.undecided}
        growth = even(trace) if undecided else mixed(trace)
        replay = runs.replayed(trace, growth, open_=bool(undecided))
        decided = judge(trace, replay, decisions, final=not undecided)
        if undecided and not decided:
            decisions.refused |= {i: refusal(record, growth) for i, record in undecided.items()}
        elif not decided:
            break
        trace = runs.traced(decisions)
    return Families(runs, decisions, trace)
