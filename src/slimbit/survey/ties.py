"""Which filters live or die together: one pass of the network's shapes in which every channel keeps its name.

Filters get numbers. Each operation that runs carries them on, ties those that it adds, or says that it mixes
them; an operation without a rule makes the filters that reach it fixed. So a unit is removable only if everything
between the layers that make it and the layers that read it is understood, and the rest says why it is not.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from slimbit.numerics.copies import plain_network
from slimbit.records.groups import Ties
from slimbit.survey.module import refuse_what_cannot_be_counted
from slimbit.survey.tie_operation import Decisions, Trace
from slimbit.survey.tie_run import Runs
from slimbit.survey.tie_sizes import even, judge, mixed
from slimbit.survey.trace import Inputs

MOST_RUNS = 24
"""Runs at other sizes until what still does not follow is left to whoever tries the smaller network."""
NEVER_CALLED = "it is never called"


def tied_filters(model: nn.Module, example_input: Inputs, *, name: str = "") -> Ties:
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

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
    >>> group = tied_filters(net, torch.zeros(1, 3, 4, 4)).groups[0]
    >>> [(m.name, m.role, m.channels[1]) for m in group.members]
    [('0', 'filters', (1,)), ('1', 'norm', (1,)), ('4', 'inputs', (4, 5, 6, 7))]
    """
    refuse_what_cannot_be_counted(model)
    network = plain_network(model)
    trace = _settled(network, example_input)
    return Ties(
        network=name or type(network).__name__,
        groups=tuple(group for group in trace.ledger.groups() if group.units > 1),
        fixed=dict(_fixed(network, trace)),
    )


def _fixed(network: nn.Module, trace: Trace) -> Iterator[tuple[str, str]]:
    alone = {layer: group for group in trace.ledger.groups() if group.units == 1 for layer in group.layers}
    for path, module in network.named_modules():
        if not isinstance(module, _ConvNd | nn.Linear):
            continue
        filters = trace.ledger.axes.get((path, "filters"))
        if filters is None:
            where = trace.strayed.get(f"{path}.weight".lstrip("."))
            yield path, f"its weight is used by {where}" if where else NEVER_CALLED
            continue
        reason = next((why for f in filters.tolist() if (why := trace.ledger.reason(f)) is not None), None)
        if reason is not None:
            yield path, reason
        elif path in alone:
            yield path, "its filters live or die together" if len(filters) > 1 else "it has a single filter"


def _settled(network: nn.Module, example_input: Inputs) -> Trace:
    """The trace of the network, after runs at other sizes have shown which of its numbers follow them."""
    runs, decisions = Runs(network, example_input), Decisions()
    trace = runs.first
    for _ in range(MOST_RUNS):
        undecided = {i: record for i, record in enumerate(trace.records) if record.undecided}
        growth = even(trace) if undecided else mixed(trace)
        replay = runs.replayed(trace, growth)
        decided = judge(trace, replay, decisions, final=not undecided)
        if undecided and not decided:
            decisions.refused |= {i: f"{record.where} does not keep channels apart" for i, record in undecided.items()}
        elif not decided:
            return trace
        trace = runs.traced(decisions)
    return trace
