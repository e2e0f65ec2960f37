"""What layers do to channels: convolutions and products read some and make others."""

from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slimbit.records.groups import Role
from slimbit.survey.channel_groups import NOT_A_FILTER, Channels
from slimbit.survey.channel_operation import Operation
from slimbit.survey.channel_rules import handles
from slimbit.survey.channel_trace import ALL, storage_of
from slimbit.survey.kinds import is_stock


@handles("convolution")
def _convolution(op: Operation) -> None:
    weight = op["weight"]
    path = op.owner(weight, "weight", _ConvNd)
    module = op.trace.modules.get(path or "")
    if not isinstance(module, _ConvNd) or path is None or weight.shape != module.weight.shape:
        op.proper.clear()
        if not _part_of_a_layer(op):
            _functional_convolution(op)
        return
    if op["transposed"] != module.transposed:
        if op["groups"] == module.groups == 1:
            _tied(op, path, op["input"], 1)
        else:
            op.give_up()
        return
    if op["groups"] != module.groups:
        op.proper.clear()
        op.give_up(f"{op.where} has other groups than its module")
        return
    if _slides_over_channels(op, path, module):
        return
    ids = op.along(op["input"], 1)
    if ids is None:
        ids = np.full(module.in_channels, NOT_A_FILTER)
    op.owner(op["bias"], "bias", _ConvNd)
    filters = _filters(op, path, module.out_channels)
    if module.groups > 1:
        _union_groups(op, path, ids, filters, module.groups)
    op.channel_groups.assign((path, "inputs"), ids)
    op.put_along(1, op.channel_groups.assign((path, "filters"), filters), zero=True)


def _slides_over_channels(op: Operation, path: str, module: _ConvNd) -> bool:
    """Whether the kernel runs over channels, as in ECA: then it needs to know their places."""
    values, found = op["input"], op.channels(op["input"])
    wide = [] if found is None else [d for d in range(values.ndim) if op.channel_groups.varies(found.ids, d)]
    known = op.channel_groups.axes.get((path, "window"))
    if found is None or len(wide) != 1 or wide[0] < 2:
        if known is not None:
            op.channel_groups.pin(known, f"{op.where} also runs over what is no filter")
        return False
    axis, behind = wide[0], values.ndim - 1 - wide[0]
    kernel, dilation, padding, stride = (
        numbers[axis - 2] for numbers in (module.kernel_size, op["dilation"], op["padding"], op["stride"])
    )
    line = op.line(found.ids, axis, values.shape[axis])
    followed = stride == 1 and 2 * padding == dilation * (kernel - 1) and (kernel == 1 or found.zero)
    again = known is not None and (len(known) != len(line) or op.channel_groups.dims.get(path) != behind)
    elsewhere = known is None and (path, "filters") in op.channel_groups.axes
    if not followed or again or elsewhere or op.trace.path[-1] != path or not is_stock(module):
        return False
    op.owner(op["bias"], "bias", _ConvNd)
    reason = f"{op.where} runs over channels with them"
    sizes: dict[Role, int] = {"inputs": module.in_channels, "filters": module.out_channels}
    for role, count in sizes.items():
        own = op.channel_groups.axes.get((path, role))
        own = op.channel_groups.new(count) if own is None else own
        op.channel_groups.pin(op.channel_groups.assign((path, role), own), reason)
    op.channel_groups.dims[path] = behind
    if kernel > 1:
        line = op.channel_groups.assign((path, "window"), line)
    op.put_along(axis, line, zero=kernel == 1 and found.zero and op["bias"] is None)
    return True


def _filters(op: Operation, path: str, count: int) -> Channels:
    """The filters of a layer, as met before."""
    known = op.channel_groups.axes.get((path, "filters"))
    if known is not None:
        return known
    filters = op.channel_groups.new(count)
    if count == 1:
        op.channel_groups.pin(filters, "it has a single filter")
    return filters


def _union_groups(op: Operation, path: str, inputs: Channels, filters: Channels, groups: int) -> None:
    """A grouped convolution loses whole groups, or the same places of each group where it has few large ones."""
    reads, makes = inputs.reshape(groups, -1), filters.reshape(groups, -1)
    reason = f"{op.where} has groups that read what is no filter"
    if op.trace.decisions.thin.setdefault(path, groups < min(reads.shape[1], makes.shape[1])):
        op.channel_groups.thinned.add(path)
        op.union_rows(reads, reason, "inputs")
        op.union_rows(makes, reason, "filters")
    else:
        group = np.concatenate((reads, makes), 1)
        op.channel_groups.union(group, group[:, -1:], reason)
        if min(reads.shape[1], makes.shape[1]) > 1:
            op.even[path] = group


def _part_of_a_layer(op: Operation) -> bool:
    """Whether the weight is a block of a layer's own, as in octave convolutions: some of its filters read some inputs.

    Where the block begins and ends is written in attributes of the module, which change with the channels.
    """
    weight = op["weight"]
    names = op.trace.names(weight)
    path = names[0].rpartition(".")[0] if len(names) == 1 else ""
    module = op.trace.modules.get(path)
    if not isinstance(module, _ConvNd) or names != [f"{path}.weight"] or module.transposed or op["transposed"]:
        return False
    block = _block_of(weight, module.weight)
    found = op.channels(op["input"])
    ids = np.full(weight.shape[1], NOT_A_FILTER) if found is None else op.along(op["input"], 1)
    if block is None or ids is None or not module.groups == op["groups"] == 1:
        return False
    rows, columns = block
    filters = op.channel_groups.assign((path, "filters"), _filters(op, path, module.out_channels))
    known = op.channel_groups.axes.get((path, "inputs"))
    reads = op.channel_groups.new(module.in_channels) if known is None else known
    reads = op.channel_groups.assign((path, "inputs"), reads)
    op.channel_groups.union(reads[columns], ids, f"{op.where} reads what is no filter")
    op.proper.add(names[0])
    zero, bias = True, op["bias"]
    if isinstance(bias, Tensor):
        own = module.bias is not None and op.trace.names(bias) == [f"{path}.bias"]
        zero = own and _block_of(bias[:, None], module.bias[:, None]) == (rows, slice(0, 1))  # type: ignore[index] # asked
        if zero:
            op.proper.add(f"{path}.bias")
        else:
            op.channel_groups.pin(filters[rows], f"{op.where} combines them with values that are no filters")
    for name, axis, part in (("filters", filters, rows), ("inputs", reads, columns)):
        for end in sorted({part.start, part.stop} - {0}):
            op.size(f"{name} {ALL if end == len(axis) else end}", end, axis[:end])
    op.put_along(1, filters[rows], zero=zero)
    return True


def _block_of(part: Tensor, whole: Tensor) -> tuple[slice, slice] | None:
    """The rows and columns of a tensor of which another is the part; None where it is none, or a part of the rest."""
    if storage_of(part) != storage_of(whole) or part.stride() != whole.stride() or part.shape[2:] != whole.shape[2:]:
        return None
    row, rest = divmod(int(part.storage_offset() - whole.storage_offset()), whole.stride(0))
    column, rest = divmod(rest, whole.stride(1)) if whole.shape[1] > 1 else (0, rest)
    rows, columns = slice(row, row + part.shape[0]), slice(column, column + part.shape[1])
    return (rows, columns) if not rest and rows.stop <= whole.shape[0] and columns.stop <= whole.shape[1] else None


def _functional_convolution(op: Operation) -> None:
    """Depthwise by a filter that is no layer's, as in blurring: each channel stays itself."""
    values, weight = op["input"], op["weight"]
    channels, groups = values.shape[1], op["groups"]
    found = op.channels(values)
    if found is None:
        return
    if groups != channels or weight.shape[0] != channels or weight.shape[1] != 1:
        op.give_up(f"{op.where} has weights that are no plain parameter of a convolution")
        return
    ids = op.along(values, 1)
    if ids is None:
        return
    zero = found.zero
    for tensor, name in ((weight, "weight"), (op["bias"], "bias")):
        if not isinstance(tensor, Tensor):
            continue
        same = tensor.stride(0) == 0 or op.trace.constant(tensor) is not None
        if not same and not op.bind(tensor, ids.reshape(-1, *(1,) * (tensor.ndim - 1))):
            op.give_up(f"{op.where} has weights that are no plain parameter of a convolution")
            return
        zero = zero and (name == "weight" or not same)
    op.size("groups", groups, ids)
    op.put_along(1, ids, zero=zero)


@handles("addmm", "mm")
def _linear(op: Operation) -> None:
    values, weight = (op["mat1"], op["mat2"]) if op.name == "addmm" else (op["self"], op["mat2"])
    path = op.owner(weight, "weight", nn.Linear)
    module = op.trace.modules.get(path or "")
    if not isinstance(module, nn.Linear) or path is None:
        _product(op, values, weight)
        return
    stored = module.weight
    if (weight.shape, weight.stride()) == (stored.shape, stored.stride()) and weight.ndim == stored.ndim:
        _tied(op, path, values, 1)
        return
    if (weight.shape, weight.stride()) != (stored.t().shape, stored.t().stride()):
        op.proper.clear()
        _product(op, values, weight)
        return
    ids = op.along(values, 1)
    op.channel_groups.assign((path, "inputs"), np.full(module.in_features, NOT_A_FILTER) if ids is None else ids)
    filters = op.channel_groups.assign((path, "filters"), _filters(op, path, module.out_features))
    zero = op.name == "mm" or _adds_bias(op, op["self"], filters)
    op.put_along(1, filters, zero=zero)


def _adds_bias(op: Operation, bias: Tensor, filters: Channels) -> bool:
    """Whether what a product adds goes with its filters; what does not makes them stay."""
    if (op["beta"], op["alpha"]) == (1, 1) and (op.owner(bias, "bias", nn.Linear) or op.bind(bias, filters)):
        return True
    op.channel_groups.pin(filters, f"{op.where} combines them with values that are no filters")
    return False


def _tied(op: Operation, path: str, values: Tensor, axis: int) -> None:
    """A layer's weight used the other way round: it reads the layer's filters and makes the layer's inputs again."""
    ids = op.along(values, axis)
    module: Any = op.trace.modules[path]
    reads = np.full(values.shape[axis], NOT_A_FILTER) if ids is None else ids
    op.channel_groups.assign((path, "filters"), reads)
    known = op.channel_groups.axes.get((path, "inputs"))
    count = module.in_channels if isinstance(module, _ConvNd) else module.in_features
    made = op.channel_groups.assign((path, "inputs"), op.channel_groups.new(count) if known is None else known)
    bias = op["bias"] if op.name == "convolution" else op["self"] if op.name == "addmm" else None
    zero = True
    if isinstance(bias, Tensor) and not op.bind(bias, made):
        op.channel_groups.pin(made, f"{op.where} combines them with values that are no filters")
        zero = False
    op.put_along(axis, made, zero=zero)


@handles("bmm", "baddbmm")
def _batched_product(op: Operation) -> None:
    left, right = (op["self"], op["mat2"]) if op.name == "bmm" else (op["batch1"], op["batch2"])
    _product(op, left, right)


def _product(op: Operation, left: Tensor, right: Tensor) -> None:
    """A product of activations: channels may be rows of the left, columns of the right, or what it sums over.

    What it sums over goes on both sides together, and may go only if it adds nothing where filters are masked.
    """
    a, b = op.channels(left), op.channels(right)
    if a is None and b is None:
        return
    added = op["self"] if op.name in ("addmm", "baddbmm") else None
    inner = (left.ndim - 1, right.ndim - 2)
    sums = [f is not None and op.channel_groups.varies(f.ids, d) for f, d in zip((a, b), inner, strict=True)]
    if any(sums) and not _sums_up(op, (left, right), sums):
        op.give_up()
        return
    kept = [_reduced(op, f.ids, d) if f is not None else None for f, d in zip((a, b), inner, strict=True)]
    zero = [f.zero if f is not None else False for f in (a, b)]
    outer = [
        k is not None and op.channel_groups.varies(k, d)
        for k, d in zip(kept, (left.ndim - 2, right.ndim - 1), strict=True)
    ]
    if all(outer) or (added is not None and op.channels(added) is not None):
        op.give_up()
        return
    rows, columns = kept
    ids = rows if columns is None else columns
    if rows is not None and columns is not None:
        ids = op.channel_groups.union(rows, columns, f"{op.where} multiplies them by what is no filter")
    if added is not None and ids is not None:
        op.give_up(f"{op.where} adds what is no filter")
        return
    op.put(ids, zero=any(zero))


def _sums_up(op: Operation, sides: tuple[Tensor, Tensor], sums: list[bool]) -> bool:
    """Whether a product may lose entries that it sums over."""
    found = [op.channels(side) for side in sides]
    lines = [op.along(s, s.ndim - 1 - k) if f is not None and does else None
             for k, (s, f, does) in enumerate(zip(sides, found, sums, strict=True))]  # fmt: skip
    batched = [
        f is not None and any(op.channel_groups.varies(f.ids, d) for d in range(len(f.ids.shape) - 2)) for f in found
    ]
    if any(batched):
        return _heads_sum_up(op, sides)
    if any(does and line is None for does, line in zip(sums, lines, strict=True)):
        return False
    if all(sums):
        assert lines[0] is not None
        assert lines[1] is not None
        op.channel_groups.union(lines[0], lines[1], f"{op.where} multiplies them by what is no filter")
        return any(f is not None and f.zero for f in found)
    here = 0 if sums[0] else 1
    line, other = lines[here], sides[1 - here]
    assert line is not None
    axis = other.ndim - 2 + here
    if op.trace.constant(other) is not None:
        return bool(found[here] is not None and found[here].zero)  # type: ignore[union-attr] # asked before
    return op.bind(other, line.reshape([-1 if d == axis else 1 for d in range(other.ndim)]))


def _heads_sum_up(op: Operation, sides: tuple[Tensor, Tensor]) -> bool:
    """Products of many pairs at once (attention heads): each pair sums over channels of its own."""
    a, b = (op.channels(side) for side in sides)
    if a is None or b is None or not (a.zero or b.zero):
        return False
    left, right = a.ids, np.swapaxes(b.ids, -1, -2)
    if left.shape[-2] != 1 or right.shape[-2] != 1:
        return False
    op.channel_groups.union(left, right, f"{op.where} multiplies them by what is no filter")
    return True


def _reduced(op: Operation, ids: Channels, axis: int) -> Channels | None:
    """Channels without a dimension along which they were summed; none where units differ along it."""
    return None if op.channel_groups.varies(ids, axis) else ids.take([0], axis)
