"""What each operation that computes does to channels: carries them on, joins them, or mixes them.

Layers have a file of their own, `slimbit.survey.channel_layers`, and so have operations that only move entries,
`slimbit.survey.channel_shapes`. An operation without a rule that meets filters makes them fixed: what is not understood
is never pruned.
To add one, write a function of the `Operation` and decorate it with torch's names of the operation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slimbit.survey.channel_groups import NOT_A_FILTER, Channels
from slimbit.survey.channel_operation import NORMS, Operation

Rule = Callable[[Operation], None]
RULES: dict[str, Rule] = {}
MAKERS = {"convolution", "addmm", "mm"}
"""Operations that make channels of their own."""


def handles(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations by name."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def rule_of(op: Operation) -> Rule:
    """The rule of an operation."""
    if op.index in op.trace.decisions.refused:
        return _refused
    return RULES.get(op.name) or (_pointwise if torch.Tag.pointwise in op.func.tags else Operation.give_up)


def _refused(op: Operation) -> None:
    """What it reads stays; a layer's own filters may go, unless that is found to be wrong as well."""
    decisions = op.trace.decisions
    op.give_up(decisions.refused[op.index])
    if op.name in MAKERS and op.index not in decisions.opaque:
        RULES[op.name](op)


@handles("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
         "_native_batch_norm_legit", "_batch_norm_no_update", "_batch_norm_with_update")  # fmt: skip
def _batch_norm(op: Operation) -> None:
    values = op["input"]
    found = op.channels(values)
    given = [op[key] for key in ("weight", "bias", "running_mean", "running_var") if isinstance(op[key], Tensor)]
    if found is None:
        for tensor in given:
            op.proper.update(op.trace.names(tensor))
        return
    ids = op.along(values, 1)
    if ids is None:
        return
    if not all(op.bind(tensor, ids) for tensor in given) or not (given or _passes_bare_norm(op, ids)):
        op.give_up()
        return
    scaled = isinstance(op["weight"], Tensor)
    op.put_along(1, ids, zero=scaled or (found.zero and not isinstance(op["running_mean"], Tensor)))


def _passes_bare_norm(op: Operation, ids: Channels) -> bool:
    """Normalization without parameters: its module still remembers how many channels there are."""
    path = op.trace.path[-1]
    module: Any = op.trace.modules[path]
    if not isinstance(module, NORMS):
        return True
    count = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    if len(ids) % count:
        return False
    op.channel_groups.union(
        ids.reshape(-1, count), ids[:count], f"{op.where} normalizes what is no filter"
    )  # one copy for each image of the batch
    op.channel_groups.assign((path, "norm"), ids[:count])
    return True


@handles("native_group_norm")
def _group_norm(op: Operation) -> None:
    """Channels of one group share their statistics: they live or die together."""
    values, count = op["input"], int(op["group"])
    found = op.channels(values)
    if found is None:
        return
    ids = op.along(values, 1)
    if ids is None:
        return
    if count == 1:
        op.give_up(f"{op.where} takes means over all channels")
        return
    groups = ids.reshape(count, -1)
    op.channel_groups.union(groups, groups[:, :1], f"{op.where} normalizes them together with what is no filter")
    given = [op[key] for key in ("weight", "bias") if isinstance(op[key], Tensor)]
    if not all(op.bind(tensor, ids) for tensor in given) or not (given or _passes_bare_norm(op, ids)):
        op.give_up()
        return
    if not isinstance(op.trace.modules[op.trace.path[-1]], nn.GroupNorm):
        op.size("group", count, groups[:, 0])
    op.put_along(1, ids, zero=found.zero or bool(given))


@handles("native_layer_norm")
def _layer_norm(op: Operation) -> None:
    values = op["input"]
    found = op.channels(values)
    if found is None:
        return
    over = range(values.ndim - len(op["normalized_shape"]), values.ndim)
    if any(op.channel_groups.varies(found.ids, d) for d in over):
        op.give_up(f"{op.where} takes means over all channels")
    else:
        op.put(found.ids, zero=False)


@handles("hardswish", "log_sigmoid_forward", "_to_copy", "native_dropout", "_prelu_kernel")
def _pointwise(op: Operation) -> None:
    """Each entry for itself; operands line up from the right, and entries that meet are joined."""
    ids = met(op, [x for x in op.tensors() if x.ndim], op.output.ndim)
    if ids is not None:
        op.put(ids, zero=_stays_zero(op))
    elif (zero := _is_constant(op)) is not None:
        op.trace.note_constant(op.output, zero=zero)
    elif op.writes:
        op.trace.spoil(op.output)


def met(op: Operation, operands: Sequence[Tensor], ndim: int) -> Channels | None:
    """The channels of entries that meet one another: joined; None where there are none, or where they cannot be."""
    channel_groups = op.channel_groups
    shapes = {id(x): [1] * (ndim - x.ndim) + [n if x.stride(d) else 1 for d, n in enumerate(x.shape)] for x in operands}
    carried = []
    for x in operands:
        found = op.channels(x)
        if found is not None:
            carried.append((x, found.ids.reshape((1,) * (ndim - x.ndim) + found.ids.shape)))
    many = [[channel_groups.varies(ids, d) for _, ids in carried] for d in range(ndim)]
    ids: Channels | None = None
    for x, found_ids in carried:
        if any(shapes[id(x)][d] == 1 and any(many[d]) for d in range(ndim)):
            channel_groups.pin(found_ids, f"{op.where} combines it with each of many others")
        elif ids is None:
            ids = found_ids
        else:
            ids = channel_groups.union(ids, found_ids, f"{op.where} adds what is no filter")
    if ids is None:
        return None
    for x in operands:
        if op.channels(x) is None and not _meets(op, x, ids):
            channel_groups.pin(ids, f"{op.where} combines them with values that are no filters")
            return None
    return ids


def _meets(op: Operation, x: Tensor, ids: Channels) -> bool:
    """Whether an operand without channels can be combined with some: a scalar of each, a parameter, a constant."""
    ahead = ids.ndim - x.ndim
    dims = [d for d in range(x.ndim) if x.shape[d] > 1 and x.stride(d) != 0 and ids.shape[ahead + d] > 1]
    names = op.trace.names(x)
    if not dims or op.trace.constant(x) is not None:
        op.proper.update(names)
        return True
    part = ids.reshape(-1, *ids.shape[ahead:])[0]
    for d in range(x.ndim):
        if d not in dims:
            part = part.take([0], d)
    if len(names) == 1 and _is_bias(op, names[0], part.ravel()):
        op.proper.add(names[0])
        return True
    return op.bind(x, part)


def _is_bias(op: Operation, name: str, ids: Channels) -> bool:
    """Whether this adds the bias of the layer that made the filters, which torch may do in an operation of its own."""
    path, _, attribute = name.rpartition(".")
    filters = op.channel_groups.axes.get((path, "filters"))
    return op.name == "add" and attribute == "bias" and filters is not None and np.array_equal(filters, ids)


def _stays_zero(op: Operation) -> bool:
    """Whether masked entries are zero behind an operation that works on each entry: try it on such entries."""
    return all(_tried(op, other) for other in (0.7, -1.3))


def _is_constant(op: Operation) -> bool | None:
    """Whether the result of constants alone is zero; None where others take part."""
    if not all(op.trace.constant(x) is not None or (not x.ndim and x.device.type == "cpu") for x in op.tensors()):
        return None
    return _tried(op, 0.7)


def _tried(op: Operation, other: float) -> bool:
    """Whether an operation of zeros, where its operands are, and of another number elsewhere is zero."""

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        found = op.channels(value)
        bound = any(name in op.proper for name in op.trace.names(value))
        zero = found.zero if found is not None else bound or bool(op.trace.constant(value))
        if value.dtype == torch.bool:
            return torch.tensor([other > 0])
        return torch.tensor([0.0 if zero else other]).to(value.dtype)

    try:
        made = op.func(*(one(value) for value in op.args), **{key: one(value) for key, value in op.kwargs.items()})
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return bool(((made if isinstance(made, Tensor) else made[0]) == 0).all())


@handles("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "adaptive_max_pool2d",
         "adaptive_max_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "reflection_pad1d", "reflection_pad2d",
         "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "upsample_nearest1d",
         "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d",
         "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
         "_upsample_nearest_exact2d", "grid_sampler_2d", "grid_sampler_3d", "max_unpool2d", "max_unpool3d")  # fmt: skip
def _spatial(op: Operation) -> None:
    values = op["self"] if op["self"] is not None else op["input"]
    found = op.channels(values)
    if found is None:
        return
    dims = next(int(c) for c in op.name if c.isdigit())
    if any(op.channel_groups.varies(found.ids, d) for d in range(values.ndim - dims, values.ndim)):
        op.give_up()
        return
    for output in op.outputs:
        op.put(found.ids, zero=found.zero, output=output)


@handles("mean", "sum", "amax", "amin", "prod", "var", "std", "max", "min", "linalg_vector_norm", "logsumexp", "norm",
         "_softmax", "_safe_softmax", "_log_softmax", "cumsum")  # fmt: skip
def _along(op: Operation) -> None:
    """Works along dimensions: channels survive where these are not theirs; masked ones add nothing to a sum."""
    values = op["self"]
    found = op.channels(values)
    if found is None:
        return
    given = op["dim"] if op["dim"] is not None else op["dims"]
    dims = [d % values.ndim for d in (given if isinstance(given, list | tuple) else [given]) if d is not None]
    dims = dims or [*range(values.ndim)]
    across = [d for d in dims if op.channel_groups.varies(found.ids, d)]
    order = op["ord"] if op.name == "linalg_vector_norm" else op["p"] if op.name == "norm" else None
    sums = op.name == "sum" or order == 2
    if op["other"] is not None or (across and not (sums and found.zero)):
        op.give_up()
        return
    ids = found.ids
    for d in across:
        ids = np.full_like(ids.take([0], d), NOT_A_FILTER)
    if op.output.ndim < values.ndim:
        for d in sorted(dims, reverse=True):
            ids = np.asarray(ids.take(0, d))
    elif op.output.shape != values.shape:
        for d in dims:
            ids = ids.take([0], d)
    for output in op.outputs:
        op.put(ids, zero=found.zero and op.name not in ("logsumexp", "_softmax", "_safe_softmax", "_log_softmax"),
               output=output)  # fmt: skip


@handles("flip")
def _flip(op: Operation) -> None:
    found = op.channels(op["self"])
    if found is not None:
        op.put(np.flip(found.ids, op["dims"]).copy(), zero=found.zero)
