"""What each operation does to channels: carries them on, ties them, or mixes them.

An operation without a rule that meets filters makes them fixed: what is not understood is never pruned.
To add one, write a function of the `Operation` and decorate it with torch's names of the operation.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from slimbit.survey.ledger import FREE
from slimbit.survey.tie_operation import Operation

Rule = Callable[[Operation], None]
RULES: dict[str, Rule] = {}


def handles(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations by name."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def rule_of(op: Operation) -> Rule:
    """The rule of an operation."""
    return RULES.get(op.name) or (_pointwise if op.pointwise else Operation.give_up)


@handles("convolution")
def _convolution(op: Operation) -> None:
    path = op.owner(op["weight"], "weight", _ConvNd)
    found = op.channels(op["input"])
    module = op.trace.modules.get(path or "")
    if not isinstance(module, _ConvNd) or path is None or not _as_declared(op, module):
        op.proper.clear()
        op.give_up(f"{op.where} has weights that are no plain parameter of a convolution")
        return
    if found is not None and found.axis != 1:
        op.give_up()
        found = None
    op.owner(op["bias"], "bias", _ConvNd)
    atoms = [FREE] * module.in_channels if found is None else found.atoms
    filters = op.ledger.axes.get((path, "filters")) or op.ledger.new(module.out_channels)
    if module.groups > 1:
        _tie_groups(op, atoms, filters, module.groups)
    op.ledger.meet((path, "inputs"), atoms)
    op.ledger.meet((path, "filters"), filters)
    op.put(1, filters)


def _as_declared(op: Operation, module: _ConvNd) -> bool:
    return (
        tuple(op["weight"].shape) == tuple(module.weight.shape)
        and op["groups"] == module.groups
        and op["transposed"] == module.transposed
    )


def _tie_groups(op: Operation, inputs: list[int], filters: list[int], groups: int) -> None:
    """All inputs and filters of one group of a grouped (or depthwise) convolution are one unit."""
    reason = f"{op.where} has groups that read what is no filter"
    i, o = len(inputs) // groups, len(filters) // groups
    for g in range(groups):
        first, *others = inputs[g * i : (g + 1) * i] + filters[g * o : (g + 1) * o]
        for other in others:
            op.ledger.tie(first, other, reason)


@handles("addmm", "mm")
def _linear(op: Operation) -> None:
    values, weight = (op["mat1"], op["mat2"]) if op.name == "addmm" else (op["self"], op["mat2"])
    path = op.owner(weight, "weight", nn.Linear)
    module = op.trace.modules.get(path or "")
    # a tied weight may come back transposed, as in F.linear(x, encoder.weight.t()); strides tell where it is square
    if not isinstance(module, nn.Linear) or path is None or not _is_transposed(weight, module.weight):
        op.proper.clear()
        _product(op, values, weight)
        return
    found = op.channels(values)
    if found is not None and found.axis != 1:
        op.give_up()
        found = None
    if op.name == "addmm" and (op["beta"], op["alpha"]) == (1, 1):
        op.owner(op["self"], "bias", nn.Linear)
    op.ledger.meet((path, "inputs"), [FREE] * module.in_features if found is None else found.atoms)
    filters = op.ledger.axes.get((path, "filters")) or op.ledger.new(module.out_features)
    op.ledger.meet((path, "filters"), filters)
    op.put(1, filters)


def _is_transposed(operand: Tensor, weight: Tensor) -> bool:
    turned = weight.t()
    return operand.shape == turned.shape and operand.stride() == turned.stride()


@handles("bmm", "baddbmm")
def _batched_product(op: Operation) -> None:
    left, right = (op["self"], op["mat2"]) if op.name == "bmm" else (op["batch1"], op["batch2"])
    _product(op, left, right)


def _product(op: Operation, left: Tensor, right: Tensor) -> None:
    """A product of activations: rows of the left or columns of the right may be channels, not both."""
    a, b = op.channels(left), op.channels(right)
    added = op["self"] if op.name in ("addmm", "baddbmm") else None
    last = left.ndim - 1
    if op.channels(added) is None and a is not None and b is None and a.axis == last - 1:
        op.put(a.axis, a.atoms)
    elif op.channels(added) is None and b is not None and a is None and b.axis == last:
        op.put(b.axis, b.atoms)
    else:
        op.give_up()


@handles("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
         "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm_with_update")  # fmt: skip
def _batch_norm(op: Operation) -> None:
    values = op["input"]
    found = op.channels(values)
    paths = [op.owner(op[key], key, _BatchNorm) for key in ("weight", "bias", "running_mean", "running_var")
             if isinstance(op[key], Tensor)]  # fmt: skip
    if found is None:
        return
    if found.axis != 1 or not paths or len({*paths}) > 1 or paths[0] is None:
        op.give_up()
        return
    op.ledger.meet((paths[0], "norm"), found.atoms)
    op.put(1, op.ledger.axes[paths[0], "norm"])


@handles("hardswish", "log_sigmoid_forward", "_to_copy", "native_dropout", "_prelu_kernel")
def _pointwise(op: Operation) -> None:
    """Each entry for itself; operands line up from the right, and entries that meet are tied."""
    ndim = op.output.ndim
    operands = [x for x in op.tensors() if x.ndim]
    carried = [(x, found) for x in operands if (found := op.channels(x)) is not None]
    axes = {found.axis + ndim - x.ndim for x, found in carried}
    if not carried:
        return
    if len(axes) > 1:
        op.give_up()
        return
    axis = axes.pop()
    atoms = max((found.atoms for _, found in carried), key=len)
    for x in operands:
        atoms = _meet(op, x, atoms, axis=axis - ndim + x.ndim)
    op.put(axis, atoms)


def _meet(op: Operation, operand: Tensor, atoms: list[int], *, axis: int) -> list[int]:
    """Channels of an operation after they met one operand."""
    found = op.channels(operand)
    width = operand.shape[axis] if 0 <= axis < operand.ndim else 1
    if found is not None and len(found.atoms) == len(atoms):
        return op.ledger.tie_all(atoms, found.atoms, f"{op.where} adds what is no filter")
    if found is not None or (width not in (1, len(atoms))):
        op.give_up()  # one filter beside many
        return [FREE] * len(atoms)
    if width == 1:
        return atoms
    names = op.trace.names(operand)
    if len(names) == 1 and _is_bias(op, names[0], atoms):
        op.proper.add(names[0])
        return atoms
    if len(names) == 1 and operand.numel() == width and _is_row(op, names[0], width):
        op.proper.add(names[0])
        op.ledger.meet((names[0], "parameter"), atoms)
        return op.ledger.axes[names[0], "parameter"]
    op.ledger.fix(atoms, f"{op.where} combines them with values that are no filters")
    return [FREE] * len(atoms)


def _is_bias(op: Operation, name: str, atoms: list[int]) -> bool:
    """Whether this adds the bias of the layer that made the filters, which torch may do in an operation of its own."""
    path, _, attribute = name.rpartition(".")
    return op.name == "add" and attribute == "bias" and op.ledger.axes.get((path, "filters")) == atoms


def _is_row(op: Operation, name: str, width: int) -> bool:
    """Whether a parameter holds one number per channel and belongs to no layer that is counted."""
    path, _, attribute = name.rpartition(".")
    stored = getattr(op.trace.modules[path], attribute)
    counted = isinstance(op.trace.modules[path], _ConvNd | nn.Linear | _BatchNorm)
    return not counted and stored.numel() == width and width in stored.shape


@handles("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "adaptive_max_pool2d",
         "adaptive_max_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "reflection_pad1d", "reflection_pad2d",
         "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "upsample_nearest1d",
         "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d",
         "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
         "_upsample_nearest_exact2d")  # fmt: skip
def _spatial(op: Operation) -> None:
    values = op["self"] if op["self"] is not None else op["input"]
    found = op.channels(values)
    if found is None:
        return
    dims = next(int(c) for c in op.name if c.isdigit())
    if found.axis >= values.ndim - dims:
        op.give_up()
    else:
        op.put(found.axis, found.atoms)


@handles("mean", "sum", "amax", "amin", "prod", "var", "std", "max", "min", "linalg_vector_norm", "logsumexp", "norm",
         "_softmax", "_log_softmax", "cumsum", "flip", "roll")  # fmt: skip
def _along(op: Operation) -> None:
    """Works along dimensions: channels survive where these are not theirs."""
    values = op["self"]
    found = op.channels(values)
    if found is None:
        return
    given = op["dim"] if op["dim"] is not None else op["dims"]
    dims = given if isinstance(given, list | tuple) else [given]
    if not dims or None in dims or found.axis in {d % values.ndim for d in dims} or op["other"] is not None:
        op.give_up()
        return
    gone = op.output.ndim < values.ndim
    before = sum(1 for d in dims if d % values.ndim < found.axis) if gone else 0
    op.put(found.axis - before, found.atoms)
