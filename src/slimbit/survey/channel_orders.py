"""Modules that only put channels in another order, and a network in which they say so.

Code that shuffles by ``view`` and ``transpose`` puts channels elsewhere when there are fewer, so after several shuffles
nothing may be missing. A module of its own can be told to bring those that are left in their old order
(`slimbit.numerics.channel_order`). So where channels stay because of such modules, the network is looked at once more,
with something in their place that takes channels by number.
"""

import numpy as np
import torch
from torch import Tensor, nn

from slimbit.numerics.channel_order import BUFFERS, Reordering, channel_order
from slimbit.numerics.copies import copied
from slimbit.survey.channel_trace import Record, Trace

MOVES = {"view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "unsqueeze", "squeeze", "permute", "clone",
         "transpose", "alias", "channel_shuffle", "native_channel_shuffle", "flip", "roll", "slice", "narrow", "split",
         "split_with_sizes", "cat", "stack", "select", "unbind", "index_select"}  # fmt: skip
"""Operations that only move entries, whatever their values."""
SEEN = 2


def with_orders(network: nn.Module, trace: Trace) -> nn.Module | None:
    """A copy in which modules that only reorder channels take them by number; None where none of these fixes any.

    Args:
        network: Not changed.
        trace: A run of it.
    """
    orders: dict[str, tuple[Tensor, bool]] = {}
    for path, module in network.named_modules():
        weights = [*module.parameters(), *(b for name, b in module.named_buffers() if name not in BUFFERS)]
        if not path or weights or any(path.startswith(f"{known}.") for known in orders):
            continue
        records = [record for record in trace.records if path in record.path]
        order = _order_of(module, records) if records else None
        if order is not None:
            orders[path] = order, any(_fixes(trace, record) for record in records)
    if not any(fixes for _, fixes in orders.values()):
        return None
    changed = copied(network)
    for path, (order, _) in orders.items():
        changed.set_submodule(path, Reordering(order))
    return changed


def _order_of(module: nn.Module, records: list[Record]) -> Tensor | None:
    """As `channel_order`, where the module does it to every value alike."""
    shape = records[-1].outputs[0][0].shape
    if not {record.name for record in records} <= MOVES or len(shape) < SEEN:
        return None
    module = copied(module).cpu()
    order = channel_order(module, shape[1], len(shape) - 2)
    if order is None or torch.equal(order, torch.arange(len(order))):
        return None
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = module(values)
    return order if torch.equal(made, values.index_select(1, order)) else None


def _fixes(trace: Trace, record: Record) -> bool:
    """Whether filters stay that an operation meets."""
    carried = [*record.inputs, *(found for _, found in record.outputs if found is not None)]
    roots = [trace.channel_groups.roots(found.ids) for found in carried]
    return any(trace.channel_groups.reason(root) is not None for ids in roots for root in np.unique(ids).tolist())
