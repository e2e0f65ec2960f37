"""Put weights from a file into a network: everything is checked first, then everything is copied."""

import difflib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError
from slimbit.zoo.cards import read_card
from slimbit.zoo.files import common_prefix, read_weights

Network = TypeVar("Network", bound=nn.Module)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
BATCH_COUNTER = "num_batches_tracked"
"""BatchNorm's counter; old files lack it, and no output depends on it."""
LISTED, LONGEST_NAME, MOST_CANDIDATES = 8, 100, 2000


def load_weights(model: Network, path: str | os.PathLike[str]) -> Network:
    """Load the weights of a file into ``model`` itself and return the same, now loaded, model.

    Nothing is copied before everything has been checked: on an error the model is as it was. Values are
    converted to the types that the model has. The training mode stays as it is.

    Args:
        model: Any network; ``module.`` or ``_orig_mod.`` before all names, here or there, does not matter.
        path: As in `read_weights`.

    Returns:
        ``model``.

    Raises:
        InputError: The file cannot be read (see `read_weights`); names or shapes do not fit, told together in
            one message (only ``num_batches_tracked`` may be missing); a tensor's type does not fit; a value
            is NaN or infinite after conversion, or a negative variance.

    >>> import tempfile
    >>> source, target = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> file = Path(tempfile.mkdtemp()) / "linear.pth"
    >>> torch.save(source.state_dict(), file)
    >>> bool((load_weights(target, file).weight == source.weight).all())
    True
    """
    weights = read_weights(path)
    state = model.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    prefix = common_prefix(tensors)
    wanted = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    file = Path(path).name
    faults = _misfits(wanted, weights)
    if faults:
        told = (read_card(path) or {}).get("description")
        card = f"; its card says: {told}" if told else ""
        hint = f"; they fit {fitting}" if (fitting := _fitting(model, weights)) else ""
        raise InputError(f"weights of {file!r} must fit {type(model).__name__}, got {faults}{card}{hint}")
    checked = {prefix + name: _converted(name, weights[name], wanted[name], file=file) for name in weights}
    model.load_state_dict({**state, **checked})
    return model


def _misfits(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """All faults of names and shapes, "" where there are none."""
    missing = [name for name in wanted if name not in weights and not name.endswith(BATCH_COUNTER)]
    unexpected = [name for name in weights if name not in wanted]
    misshapen = [
        f"{_clipped(name)} has {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    faults = [
        _listed("missing", [_with_closest(name, unexpected) for name in missing[:LISTED]], len(missing)),
        _listed("unexpected", [_with_closest(name, missing) for name in unexpected[:LISTED]], len(unexpected)),
        _listed("misshapen", misshapen[:LISTED], len(misshapen)),
    ]
    return "; ".join(filter(None, faults))


def _fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """The network of the zoo, as deep and wide as this one of the zoo, that the weights do fit; "" where none does."""
    from slimbit.zoo.registry import ENTRIES

    base, _, width = str(getattr(model, "zoo_name", "")).partition("@")
    rows = [len(value) for value in weights.values() if value.dim() == 2]  # of the last linear layer, an output each
    if base not in ENTRIES or not rows:
        return ""
    depth = ENTRIES[base].options.get("depth")
    for name, entry in ENTRIES.items():
        if entry.options.get("depth") != depth:
            continue
        with torch.device("meta"):  # without memory for weights
            built = entry.build(classes=rows[-1], width=float(width or 1))
        if not _misfits(built.state_dict(), weights):
            suffix = f" with {rows[-1]} classes" if rows[-1] != entry.classes else ""
            return f"{name}{'@' if width else ''}{width}{suffix}"
    return ""


def _listed(fault: str, shown: list[str], count: int) -> str:
    if not count:
        return ""
    rest = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f"{count} {fault}: {', '.join(shown)}{rest}"


def _with_closest(name: str, others: Collection[str]) -> str:
    """The name, and the one on the other side that is most like it."""
    # A hostile file must not buy minutes of string comparison.
    candidates = [other for other in list(others)[:MOST_CANDIDATES] if len(other) <= LONGEST_NAME]
    match = difflib.get_close_matches(name[:LONGEST_NAME], candidates, n=1, cutoff=0.6)
    return f"{_clipped(name)} (closest: {match[0]})" if match else _clipped(name)


def _clipped(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."


def _converted(name: str, value: Tensor, target: Tensor, *, file: str) -> Tensor:
    """``value`` in the type of ``target``, after the checks that need no other tensor."""
    where = f"tensor {_clipped(name)!r} of weights {file!r}"
    if target.is_meta:
        raise InputError(f"network must have memory for its weights, got {name!r} on the meta device")
    if value.layout is not torch.strided or value.is_meta or value.is_nested:
        raise InputError(f"{where} must be dense, got a meta, nested or {value.layout} tensor")
    allowed = FLOATS if target.is_floating_point() else INTEGERS
    if value.dtype not in allowed:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise InputError(f"{where} must be one of {kinds}, got {value.dtype}")
    converted = value.detach().to(target.dtype)
    _check_finite(converted, where=where)
    if name.endswith("running_var") and bool((converted < 0).any()):  # its square root would be NaN
        raise InputError(f"{where} must not be negative, got {converted.min().item():g}")
    return converted


def _check_finite(value: Tensor, *, where: str) -> None:
    nans, infinite = int(value.isnan().sum()), int(value.isinf().sum())
    if nans or infinite:
        kind = str(value.dtype).removeprefix("torch.")
        counts = f"{nans} NaN and {infinite} infinite"
        raise InputError(f"{where} must be finite, got {counts} of {value.numel()} values as {kind}")
