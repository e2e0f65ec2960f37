"""What operations that only move entries do to channels; rules as in `slimbit.survey.channel_rules`."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn.modules.padding import _ConstantPadNd

from slimbit.numerics.channel_order import BUFFERS, Reordering
from slimbit.survey.channel_groups import NOT_A_FILTER, Channels
from slimbit.survey.channel_operation import Operation
from slimbit.survey.channel_rules import handles, met
from slimbit.survey.channel_trace import TensorChannels, compressed

HALVES = 2


@handles("alias", "detach", "lift_fresh", "contiguous", "clone", "dropout", "zeros_like", "ones_like", "rand_like")
def _same(op: Operation) -> None:
    values = op["self"] if op["self"] is not None else op["input"]
    found, like = op.channels(values), op.name.endswith("_like")
    if found is not None:
        op.put(found.ids, zero=op.name == "zeros_like" or (found.zero and not like))
    elif op.name in ("zeros_like", "ones_like"):
        op.trace.note_constant(op.output, zero=op.name == "zeros_like")
    elif op.name == "lift_fresh" and not values.ndim:
        op.trace.note_constant(op.output, zero=False)
    if not like:
        _pass_on(op)


def _pass_on(op: Operation) -> None:
    """A view of a parameter is still that parameter, and of a constant that constant."""
    values = op["self"] if op["self"] is not None else op["input"]
    op.proper.update(op.trace.names(values))
    zero = op.trace.constant(values)
    if zero is not None:
        for output in op.outputs:
            op.trace.note_constant(output, zero=zero)


def _followed(op: Operation) -> TensorChannels | None:
    """The channels of a tensor whose entries an operation moves, which stays the parameter or constant that it is."""
    _pass_on(op)
    return op.channels(op["self"])


@handles("empty", "new_empty", "zeros", "new_zeros", "ones", "new_ones", "full", "new_full", "full_like",
         "scalar_tensor")  # fmt: skip
def _filled(op: Operation) -> None:
    """The same number everywhere, however many channels the code asks for."""
    value = op["fill_value"] if op["fill_value"] is not None else op["s"]
    op.trace.note_constant(op.output, zero=value == 0 if value is not None else "zeros" in op.name)


@handles("copy", "fill", "zero")
def _write(op: Operation) -> None:
    """What is written into a tensor or a part of it; a number leaves it the channels that it had."""
    target: Tensor = op["self"]
    source = op["src"] if op.name == "copy" else op["value"]
    before, made = op.channels(target), op.channels(source)
    if made is not None:
        ids, zero = made.ids.reshape((1,) * (target.ndim - made.ids.ndim) + made.ids.shape), made.zero
        if before is not None and op.trace.is_part_beside(target):
            ids = op.channel_groups.union(ids, before.ids, f"{op.where} writes them beside what is no filter")
            zero = zero and before.zero
        op.put(ids, zero=zero)
        return
    constant = op.trace.constant(source) if isinstance(source, Tensor) else not source
    if before is not None and constant is not None:
        op.put(before.ids, zero=before.zero and constant)
    elif before is None and constant is not None and op.trace.constant(target) is not None:
        op.trace.note_constant(target, zero=False)
    else:
        op.give_up(f"{op.where} writes values over them that are no filters")


@handles("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "expand", "unflatten")
def _view(op: Operation) -> None:
    """Channels keep their order; where their dimension is split, the code tells which part becomes shorter."""
    values, found = op["self"], _followed(op)
    if found is None:
        return
    if op.name == "expand":
        ids: Channels | None = _expanded(op, values, found.ids)
    else:
        ids = reshaped(found.ids, values.shape, op.output.shape)
    if ids is None:
        op.give_up()
        return
    op.put(_settled(op, ids), zero=found.zero)


def _expanded(op: Operation, values: Tensor, ids: Channels) -> Channels | None:
    ahead = op.output.ndim - values.ndim
    ids = ids.reshape((1,) * ahead + ids.shape)
    many = [op.output.shape[ahead + d] for d in range(values.ndim) if values.shape[d] == 1]
    if max(many, default=1) > 1 and max(ids.shape) == 1 and values.shape[-1] == 1:
        return None
    return ids


def reshaped(ids: Channels, before: Sequence[int], after: Sequence[int]) -> Channels | None:
    """Channels of a tensor that is given another shape; None for empty tensors.

    >>> reshaped(np.array([[[5], [6]]]), (1, 2, 9), (1, 18))[0].tolist() == [5] * 9 + [6] * 9
    True
    """
    if math.prod(before) == 0:
        return None
    wide: list[int] = []
    result: list[int] = []
    i = j = 0
    while i < len(before) or j < len(after):
        rows, columns = [*before[i : i + 1]], [*after[j : j + 1]]
        i, j = i + len(rows), j + len(columns)
        while math.prod(rows) != math.prod(columns):
            if math.prod(rows) < math.prod(columns):
                rows.append(before[i])
                i += 1
            else:
                columns.append(after[j])
                j += 1
        uniform = all(n == 1 for n in ids.shape[i - len(rows) : i])
        wide += [1] * len(rows) if uniform else rows
        result += [1] * len(columns) if uniform else columns
    return compressed(np.broadcast_to(ids, wide).reshape(result))


def _settled(op: Operation, ids: Channels) -> Channels:
    """Channels over several dimensions: only one of these can become shorter, so units run along the others."""
    dims = [d for d in range(ids.ndim) if op.channel_groups.varies(ids, d)]
    follow = op.trace.decisions.follow.get(op.index)
    if len(dims) > 1 and follow in dims:
        rows = np.moveaxis(ids, follow, -1).reshape(-1, ids.shape[follow])
        op.union_rows(rows, f"{op.where} splits them together with what is no filter")
        dims = [follow]
    elif len(dims) > 1:
        op.undecided = tuple(dims)
    for d in dims:
        op.size(str(d), op.output.shape[d], op.line(ids, d, ids.shape[d]))
    return ids


@handles("permute", "transpose", "t", "movedim")
def _permute(op: Operation) -> None:
    values, found = op["self"], _followed(op)
    if found is None:
        return
    if op.name == "permute":
        order = [d % values.ndim for d in op["dims"]]
    else:
        order = list(range(values.ndim))
        a, b = (op["dim0"], op["dim1"]) if op.name == "transpose" else (0, values.ndim - 1)
        order[a], order[b] = order[b], order[a]
    op.put(np.transpose(found.ids, order), zero=found.zero)


@handles("slice", "narrow")
def _slice(op: Operation) -> None:
    """Parts along other axes keep channels; parts along theirs take them by numbers that must follow."""
    found = _followed(op)
    if found is None:
        return
    dim, size = op["dim"] % op["self"].ndim, op["self"].shape[op["dim"]]
    if found.ids.shape[dim] == 1:
        op.put(found.ids, zero=found.zero)
        return
    start, end, step = (op[key] for key in ("start", "end", "step"))
    start, end, step = start or 0, size if end is None else end, step or 1
    start, end = (min(max(n + size if n < 0 else n, 0), size) for n in (start, end))
    line, places = op.line(found.ids, dim, size), np.arange(start, end, step)
    empty = op.trace.unwritten(op["self"], dim, places)
    if empty is not None:
        op.trace.note_constant(op.output, zero=empty)
        return
    if step > 1:
        if size % step or start >= step or end != size:
            op.give_up(f"{op.where} takes channels by their number")
            return
        op.channel_groups.union(
            line.reshape(-1, step), line[::step, None], f"{op.where} takes each {step}th of what is no filter"
        )
    elif op.index in op.trace.decisions.parts:
        _union_parts(op, line, (start, end))
    for slot, number in (("start", start), ("end", end)):
        if 0 < number < size and step == 1:
            op.size(slot, number, line[:number])
    op.put(found.ids.take(places, dim), zero=found.zero)


def _union_parts(op: Operation, line: Channels, bounds: Sequence[int]) -> None:
    """Parts whose sizes the code computes from the whole stay such parts if all of them lose the same places.

    Halves also do if they lose mirrored places. A shuffle of halves, and any number of them, keeps such pairs together,
    where channels at the same places of both soon are all one unit.
    """
    rows = line.reshape(-1, math.gcd(len(line), *bounds))
    if op.index in op.trace.decisions.mirrored and len(rows) == HALVES:
        rows = np.stack((rows[0], rows[1][::-1]))
    op.union_rows(rows, f"{op.where} takes parts of them and of what is no filter")


@handles("select", "unbind")
def _select(op: Operation) -> None:
    """One entry along a dimension; of channels only where all along it are one unit."""
    found = _followed(op)
    if found is None:
        return
    dim = (op["dim"] or 0) % op["self"].ndim
    if op.channel_groups.varies(found.ids, dim):
        op.give_up(f"{op.where} takes channels by their number")
        return
    for output in op.outputs:
        op.put(np.asarray(found.ids.take(0, dim)), zero=found.zero, output=output)


@handles("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def _split(op: Operation) -> None:
    found = _followed(op)
    if found is None:
        return
    dim = (op["dim"] or 0) % op["self"].ndim
    if found.ids.shape[dim] == 1:
        for part in op.outputs:
            op.put(found.ids, zero=found.zero, output=part)
        return
    line = op.line(found.ids, dim, op["self"].shape[dim])
    ends = np.cumsum([part.shape[dim] for part in op.outputs]).tolist()
    if op.index in op.trace.decisions.parts:
        _union_parts(op, line, ends)
    for number, (part, end) in enumerate(zip(op.outputs, ends, strict=True)):
        places = np.arange(end - part.shape[dim], end)
        op.size(str(number), len(places), line[places])
        op.put(found.ids.take(places, dim), zero=found.zero, output=part)


@handles("cat", "stack")
def _cat(op: Operation) -> None:
    parts = [x for x in op["tensors"] if x.numel() or x.ndim > 1]
    found_of = [op.channels(x) for x in parts]
    carried = [found for found in found_of if found is not None]
    if not carried:
        return
    dim, zero = op["dim"] % op.output.ndim, all(found.zero for found in carried)
    if op.name == "stack" or all(found.ids.shape[dim] == 1 for found in carried):
        ids = met(op, parts, parts[0].ndim)
        if ids is not None:
            op.put(np.expand_dims(ids, dim) if op.name == "stack" else ids, zero=zero)
        return
    if any(op.channel_groups.varies(found.ids, d) for found in carried for d in range(op.output.ndim) if d != dim):
        op.give_up()
        return
    lines = [
        np.full(x.shape[dim], NOT_A_FILTER) if found is None else op.line(found.ids, dim, x.shape[dim])
        for x, found in zip(parts, found_of, strict=True)
    ]
    op.put_along(dim, np.concatenate(lines), zero=zero)


@handles("repeat")
def _repeat(op: Operation) -> None:
    found = _followed(op)
    if found is None:
        return
    ids = found.ids.reshape((1,) * (op.output.ndim - op["self"].ndim) + found.ids.shape)
    op.put(np.tile(ids, [k if n > 1 else 1 for k, n in zip(op["repeats"], ids.shape, strict=True)]), zero=found.zero)


@handles("unfold")
def _windows(op: Operation) -> None:
    """Windows along one dimension, their places in a new last one."""
    found = op.channels(op["self"])
    if found is None:
        return
    if op.channel_groups.varies(found.ids, op["dimension"] % op["self"].ndim):
        op.give_up(f"{op.where} takes channels by their number")
    else:
        op.put(found.ids[..., None], zero=found.zero)


@handles("constant_pad_nd")
def _pad(op: Operation) -> None:
    """Zeros beside channels are channels too, which the code or a padding module makes."""
    values: Tensor = op["self"]
    found = op.channels(values)
    if found is None:
        return
    pad: list[int] = [*op["pad"], *(0,) * (2 * values.ndim - len(op["pad"]))]
    dims = [d for d in range(values.ndim) if found.ids.shape[d] > 1 and any(pad[2 * (values.ndim - 1 - d) :][:2])]
    zero = found.zero and not op["value"]
    if not dims:
        op.put(found.ids, zero=zero)
        return
    low, high = pad[2 * (values.ndim - 1 - dims[0]) :][:2]
    line = op.along(values, dims[0])
    if line is None:
        return
    if min(low, high) < 0:
        op.give_up(f"{op.where} takes channels by their number")
        return
    zeros = np.full(low + high, NOT_A_FILTER)
    path = op.trace.path[-1]
    module = op.trace.modules[path]
    if isinstance(module, _ConstantPadNd) and not op["value"] and list(module.padding) == list(op["pad"]):
        known = op.channel_groups.axes.get((path, "padding"))
        zeros = op.channel_groups.assign(
            (path, "padding"), op.channel_groups.new(low + high) if known is None else known
        )
    op.put_along(dims[0], np.concatenate((zeros[:low], line, zeros[low:])), zero=zero)


@handles("pixel_shuffle", "pixel_unshuffle", "im2col", "col2im", "channel_shuffle", "native_channel_shuffle", "glu")
def _woven(op: Operation) -> None:
    """Channels that are woven from several, or are spread over several."""
    values: Tensor = op["self"]
    if op.channels(values) is None:
        return
    shuffles = op.name.startswith("pixel")
    axis = op["dim"] % values.ndim if op.name == "glu" else values.ndim - 3 if shuffles else values.ndim - 2
    axis = 1 if op.name.endswith("channel_shuffle") else axis
    axis = values.ndim - 3 if op.name == "im2col" else axis
    zero = bool(op.channels(values).zero)  # type: ignore[union-attr] # asked above
    line = op.along(values, axis)
    if line is None:
        return
    reason = f"{op.where} weaves in what is no filter"
    if op.name in ("pixel_unshuffle", "im2col"):
        ids = np.repeat(line, op.output.shape[-3 if shuffles else -2] // len(line))
    elif op.name.endswith("channel_shuffle"):
        table = line.reshape(op["groups"], -1)
        op.union_rows(table, reason)
        ids = table.T.ravel()
    elif op.name == "glu":
        first, second = np.split(line, 2)
        ids = op.channel_groups.union(first, second, reason)
    else:
        runs = line.reshape(op.output.shape[-3], -1)
        ids = op.channel_groups.union(runs, runs[:, :1], reason)[:, 0]
    op.put_along(
        op.output.ndim - 2 if op.name == "im2col" else op.output.ndim - 3 if shuffles else axis, ids, zero=zero
    )


@handles("index", "index_select")
def _indexed(op: Operation) -> None:
    """Entries along another dimension than that of channels, or channels picked by the numbers in a buffer."""
    values: Tensor = op["self"]
    found = op.channels(values)
    if found is None:
        return
    path = op.trace.path[-1]
    if isinstance(op.trace.modules[path], Reordering):
        _reordered(op, path)
        return
    indices = op["indices"] if op.name == "index" else [*(None,) * (op["dim"] % values.ndim), op["index"]]
    picked = [d for d, index in enumerate(indices) if index is not None]
    plain = op.output.ndim == values.ndim and len(picked) == 1
    if plain and found.ids.shape[picked[0]] == 1:
        op.put(found.ids, zero=found.zero)
        return
    names = op.trace.names(indices[picked[0]]) if plain else []
    numbers = op.trace.numbers.get(names[0]) if len(names) == 1 else None
    kept = len(names) == 1 and names[0].endswith(BUFFERS)
    line = op.along(values, picked[0]) if numbers is not None and not kept else None
    if line is None or numbers is None or numbers.shape != indices[picked[0]].shape or numbers.ndim != 1:
        op.give_up(f"{op.where} takes channels by their number")
        return
    op.proper.add(names[0])
    op.channel_groups.assign((names[0], "values"), line)
    op.put_along(picked[0], op.channel_groups.assign((names[0], "index"), line[numbers]), zero=found.zero)


def _reordered(op: Operation, path: str) -> None:
    """What stands for a module that only reorders channels."""
    values: Tensor = op["self"]
    found, order = op.channels(values), op.trace.numbers[f"{path}.order"]
    line = op.along(values, 1)
    op.proper.update(op.trace.names(op["index"]))
    if line is None or found is None:
        return
    if len(op["index"]) != len(order):
        op.give_up(f"{op.where} takes channels by their number")
        return
    line = op.channel_groups.assign((path, "order"), line)
    op.channel_groups.dims[path] = values.ndim - 2
    op.put_along(1, line[order], zero=found.zero)
