"""What a tracker's state must look like before anything of it is used."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slimbit.records.errors import InputError
from slimbit.training.weights import TrackedWeight

COUNTERS = ("epoch", "iterations", "positions")


def check_counters(state: Mapping[str, Tensor], *, layers: int) -> None:
    """Raise `InputError` unless the state counts epochs, iterations and the positions of that many layers."""
    for name, shape in {"epoch": (), "iterations": (), "positions": (layers,)}.items():
        value = state.get(name)
        if not isinstance(value, Tensor):
            raise InputError(f"a tracker's state must hold {name}, got {', '.join(list(state)[:3]) or 'nothing'}")
        if value.dtype != torch.int64 or tuple(value.shape) != shape:
            wanted = "one whole number" if not shape else f"one whole number for each of {layers} layers"
            raise InputError(f"{name} of a tracker's state must be {wanted}, got {_described(value)}")
    if int(state["epoch"]) < 1 or int(state["iterations"]) < 0:
        counted = f"epoch {int(state['epoch'])} and {int(state['iterations'])} iterations"
        raise InputError(f"a tracker's state must count epochs from 1 and iterations from 0, got {counted}")


def check_weights(state: Mapping[str, Tensor], weights: Sequence[TrackedWeight]) -> None:
    """Raise `InputError` unless the state holds start and sums of these weights and of no others."""
    wanted = {name: form for weight in weights for name, form in _forms(weight).items()}
    for name in state:
        if name not in wanted and name not in COUNTERS:
            raise InputError(f"a tracker's state must be of the same network, got one with {name}")
    for name, (shape, dtype) in wanted.items():
        if name not in state:
            raise InputError(f"a tracker's state must be of the same network, got one without {name}")
        value = state[name]
        if tuple(value.shape) != shape or (dtype is not None and value.dtype != dtype):
            form = f"{'x'.join(map(str, shape))} {dtype or value.dtype}"
            raise InputError(f"{name} of a tracker's state must be {form}, got {_described(value)}")


def _forms(weight: TrackedWeight) -> dict[str, tuple[tuple[int, ...], torch.dtype | None]]:
    value = weight.read()
    sums = (2, *value.shape[: weight.depth])
    return {f"start.{weight.key}": (tuple(value.shape), value.dtype), f"sums.{weight.key}": (sums, None)}


def _described(value: Tensor) -> str:
    return f"{'x'.join(map(str, value.shape)) or 'one'} {value.dtype}"
