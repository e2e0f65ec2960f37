"""What operations that only move entries do to channels; rules as in `slimbit.survey.tie_rules`."""

import math

from torch import Tensor
from torch.nn.modules.padding import _ConstantPadNd

from slimbit.survey.ledger import FREE
from slimbit.survey.tie_operation import Operation
from slimbit.survey.tie_rules import handles


@handles("alias", "detach", "lift_fresh", "contiguous", "dropout", "zeros_like", "ones_like", "rand_like")
def _same(op: Operation) -> None:
    found = op.channels(op["self"] if op["self"] is not None else op["input"])
    if found is not None:
        op.put(found.axis, found.atoms)
    _keep_names(op)


def _keep_names(op: Operation) -> None:
    """A view of a parameter is still that parameter."""
    op.proper.update(name for tensor in op.tensors() for name in op.trace.names(tensor))


@handles("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze")
def _view(op: Operation) -> None:
    """Channels survive where their axis does, or where what follows it is flattened into it."""
    _keep_names(op)
    values: Tensor = op["self"]
    found = op.channels(values)
    if found is None:
        return
    before, after = math.prod(values.shape[: found.axis]), math.prod(values.shape[found.axis + 1 :])
    for axis, size in enumerate(op.output.shape):
        repeats, rest = divmod(size, len(found.atoms))
        fits = rest == 0 and repeats > 0 and after % repeats == 0
        if fits and (size > 1 or len(found.atoms) == 1) and math.prod(op.output.shape[:axis]) == before:
            op.put(axis, [atom for atom in found.atoms for _ in range(repeats)])
            return
    op.give_up()


@handles("permute", "transpose", "t")
def _permute(op: Operation) -> None:
    _keep_names(op)
    values: Tensor = op["self"]
    found = op.channels(values)
    if found is None:
        return
    order = list(range(values.ndim))
    if op.name == "permute":
        order = [d % values.ndim for d in op["dims"]]
    else:
        a, b = (op["dim0"], op["dim1"]) if op.name == "transpose" else (0, values.ndim - 1)
        order[a], order[b] = order[b], order[a]
    op.put(order.index(found.axis), found.atoms)


@handles("expand")
def _expand(op: Operation) -> None:
    _keep_names(op)
    found = op.channels(op["self"])
    if found is None:
        return
    axis = found.axis + op.output.ndim - op["self"].ndim
    if op.output.shape[axis] == len(found.atoms):
        op.put(axis, found.atoms)
    else:
        op.give_up()  # one filter becomes many


@handles("slice", "select", "narrow")
def _slice(op: Operation) -> None:
    """Parts along other axes keep channels; parts along theirs are numbers in the code, which nothing can change."""
    found = op.channels(op["self"])
    if found is None:
        return
    dim = op["dim"] % op["self"].ndim
    if dim == found.axis and (op.name == "select" or op.output.shape[dim] != len(found.atoms)):
        op.give_up(f"{op.where} takes channels by their number")
        return
    op.put(found.axis - (op.name == "select" and dim < found.axis), found.atoms)


@handles("split", "split_with_sizes", "unbind", "unsafe_split", "unsafe_chunk")
def _split(op: Operation) -> None:
    found = op.channels(op["self"])
    if found is None:
        return
    dim = (op["dim"] or 0) % op["self"].ndim
    if dim == found.axis:
        op.give_up(f"{op.where} takes channels by their number")
        return
    for part in op.outputs:
        op.put(found.axis - (op.name == "unbind" and dim < found.axis), found.atoms, part)


@handles("cat", "stack")
def _cat(op: Operation) -> None:
    parts = [x for x in op["tensors"] if x.numel() or x.ndim > 1]
    carried = [(x, op.channels(x)) for x in parts]
    axes = {found.axis for _, found in carried if found is not None}
    if not axes:
        return
    dim = op["dim"] % op.output.ndim
    axis = axes.pop()
    if axes:
        op.give_up()
    elif dim == axis and op.name == "cat":
        op.put(axis, [a for x, found in carried for a in ([FREE] * x.shape[axis] if found is None else found.atoms)])
    else:
        reason = f"{op.where} puts them beside what is no filter"
        atoms = next(found.atoms for _, found in carried if found is not None)
        for x, found in carried:
            atoms = op.ledger.tie_all(atoms, [FREE] * x.shape[axis] if found is None else found.atoms, reason)
        op.put(axis + (op.name == "stack" and dim <= axis), atoms)


@handles("constant_pad_nd")
def _pad(op: Operation) -> None:
    """Zeros beside channels are channels too, which the code or a padding module makes."""
    values: Tensor = op["self"]
    found = op.channels(values)
    if found is None:
        return
    place = 2 * (values.ndim - 1 - found.axis)
    low, high = op["pad"][place : place + 2] or (0, 0)
    if (low, high) == (0, 0):
        op.put(found.axis, found.atoms)
        return
    if min(low, high) < 0:
        op.give_up(f"{op.where} takes channels by their number")
        return
    path = op.trace.path[-1]
    module = op.trace.modules[path]
    if not isinstance(module, _ConstantPadNd) or op["value"] or list(module.padding) != list(op["pad"]):
        op.put(found.axis, [FREE] * low + found.atoms + [FREE] * high)
        return
    zeros = op.ledger.axes.get((path, "padding")) or op.ledger.new(low + high)
    op.ledger.meet((path, "padding"), zeros)
    op.put(found.axis, zeros[:low] + found.atoms + zeros[low:])


@handles("pixel_shuffle")
def _pixel_shuffle(op: Operation) -> None:
    """Each output channel is woven from a run of input channels, which are one unit."""
    found = op.channels(op["self"])
    run = int(op["upscale_factor"]) ** 2
    if found is None:
        return
    if found.axis != op["self"].ndim - 3:
        op.give_up()
        return
    woven = []
    for start in range(0, len(found.atoms), run):
        first, *others = found.atoms[start : start + run]
        for other in others:
            first = op.ledger.tie(first, other, f"{op.where} weaves in what is no filter")
        woven.append(first)
    op.put(found.axis, woven)
