"""How many images one forward pass worked on: learned from what the network does, never from the example alone.

A dimension of the example is the batch if the network also runs on twice as much of it, and every operation then does
exactly twice the work or the same: channels do not run, the scores of attention grow with the square of a sequence, a
convolution without a batch still works on one image. What does not grow is done once, whatever the batch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError
from slimbit.survey.trace import Call, Inputs

Retrace = Callable[[Inputs], list[Call]]


def calls_per_image(
    model: nn.Module, example: Inputs, calls: Sequence[Call], retrace: Retrace, *, batch: int | None
) -> tuple[list[Call], str]:
    """The calls of a pass with positions and work of one image.

    Args:
        model: The network.
        example: What it ran on.
        calls: The pass.
        retrace: Runs it on another example; whatever it raises means that the network does not run on that.
        batch: How many images the example holds; None = to be found out.

    Returns:
        The calls, and a note where nothing shows how many images there were ("" = something does). Then the counts
        are those of the whole example.

    Raises:
        InputError: The batch is not a positive number, or does not divide the positions of a layer.
    """
    check_batch(batch)
    tensors = list(tensors_in(example))
    candidates = [
        (tensor.shape[axis], axis) for axis in _batch_axes(model, batch) for tensor in tensors if tensor.ndim > axis
    ]
    candidates = [c for c in dict.fromkeys(candidates) if batch in (None, c[0])]
    if batch == 1 or (batch is None and all(size == 1 for size, _ in candidates)):
        return list(calls), ""
    found = [(size, pairs) for size, axis in candidates if (pairs := _doubled(example, size, axis, calls, retrace))]
    if found:
        size, pairs = max(found, key=lambda entry: _growth(entry[1]))
        return [_one_image(call, more, size) for call, more in pairs], ""
    seen = {call.images for call in calls if call.images is not None}
    known = batch or (next(iter(seen)) if len(seen) == 1 else 0)
    largest = max(tensors, key=torch.Tensor.numel)
    if known == 1 or known in {size for size, _ in candidates} or batch:
        return divided(calls, known), ""
    if largest.shape[0] == 1 or not any(map(_amount, calls)):
        return list(calls), ""
    return list(calls), (
        f"No dimension of the example input ({described(example)}) was found to be the batch, so the counts are those "
        "of the whole example: say how many images it holds (batch)."
    )


def check_batch(batch: int | None) -> None:
    """Raise `InputError` unless it is None or a number of images."""
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise InputError(f"batch must be a positive whole number, got {batch}")


def divided(calls: Iterable[Call], batch: int) -> list[Call]:
    """The calls of a pass over ``batch`` images with positions and work of one of them.

    Raises:
        InputError: The batch does not divide the positions of a layer.
    """
    return [_one_image(call, None, batch) for call in calls]


def divided_where_possible(calls: Iterable[Call], batch: int) -> list[Call]:
    """As `divided`, but calls whose positions the batch does not divide are taken as made once, whatever it is."""
    return [_one_image(call, call if any(u.positions % batch for u in call.uses) else None, batch) for call in calls]


def batch_of_pass(network: nn.Module, inputs: Any, outputs: Any, calls: Iterable[Call]) -> int:
    """How many images a pass worked on that cannot be repeated.

    Args:
        network: The network, or the part of it, that ran.
        inputs: Its arguments.
        outputs: What it returned.
        calls: Of its layers.

    Raises:
        InputError: Neither the layers nor inputs and outputs agree on a number.
    """
    seen = {call.images for call in calls if call.images is not None}
    axis = _batch_axes(network, None)[0]
    sizes = [{x.shape[axis] for x in tensors_in(values) if x.ndim > axis} for values in (inputs, outputs)]
    if len(seen) == 1 and seen <= sizes[0] | {1}:
        return seen.pop()
    for known in (sizes[0] & sizes[1], sizes[0]):
        if len(known) == 1:
            return known.pop()
    raise InputError(f"the batch must show in inputs and outputs, got {described(inputs)}")


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of tuples, lists and mappings.

    >>> [x.ndim for x in tensors_in({"a": torch.zeros(1), "b": [torch.zeros(1, 1), "c"]})]
    [1, 2]
    """
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping | list | tuple):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from tensors_in(value)


def with_tensors(values: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same nest of tuples, lists and mappings with a function of each tensor in its place."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, Mapping):
        return {key: with_tensors(value, function) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [with_tensors(v, function) for v in values] if isinstance(values, list) else _tuple(values, function)
    return values


def _tuple(values: tuple[Any, ...], function: Callable[[Tensor], Any]) -> tuple[Any, ...]:
    parts = [with_tensors(value, function) for value in values]
    return type(values)(*parts) if hasattr(values, "_fields") else tuple(parts)


def described(inputs: Any) -> str:
    """Shapes of the tensors, for people.

    >>> described((torch.zeros(1, 3, 8, 8), 0.5))
    '1x3x8x8, float'
    """
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    parts = [inputs] if isinstance(inputs, Tensor) else list(values)
    return ", ".join("x".join(map(str, v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in parts)


def _batch_axes(model: nn.Module, batch: int | None) -> tuple[int, ...]:
    """Dimensions that may be the batch, likely ones first: the second where a layer wants sequences first."""
    if batch is not None:
        return (0, 1, 2)
    return (1, 0) if any(getattr(module, "batch_first", None) is False for module in model.modules()) else (0,)


def _doubled(
    example: Inputs, size: int, axis: int, calls: Sequence[Call], retrace: Retrace
) -> list[tuple[Call, Call]] | None:
    """Each call beside the one on twice as much along a dimension; None where that is no batch."""

    def twice(x: Tensor) -> Tensor:
        return torch.cat([x, x], axis) if x.ndim > axis and x.shape[axis] == size else x

    try:
        doubled: Sequence[Call] = retrace(with_tensors(example, twice))
    except Exception:  # noqa: BLE001 - the network does not run on it
        return None
    if [call.path for call in calls] != [call.path for call in doubled]:  # a loop over images
        calls, doubled = _by_module(calls), _by_module(doubled)
    if [call.path for call in calls] != [call.path for call in doubled]:
        return None
    pairs = list(zip(calls, doubled, strict=True))
    return pairs if all(_is_batched(*pair, size) for pair in pairs) and _growth(pairs) else None


def _by_module(calls: Iterable[Call]) -> list[Call]:
    """One call for all calls of a module."""
    found: dict[str, Call] = {}
    for call in calls:
        whole = found.setdefault(call.path, Call(call.path, images=call.images and 0))
        uses = {(use.parameter, use.part): use for use in whole.uses}
        for use in call.uses:
            known = uses.get((use.parameter, use.part))
            uses[use.parameter, use.part] = replace(use, positions=use.positions + (known.positions if known else 0))
        whole.uses = list(uses.values())
        whole.work.update(call.work)
        whole.slices |= call.slices
        whole.failure = whole.failure or call.failure
        whole.unknown.update(call.unknown)
        if whole.images is not None and call.images is not None:
            whole.images += call.images
    return list(found.values())


def _is_batched(call: Call, more: Call, size: int) -> bool:
    """Whether twice the images made a call do twice the work, or the same."""
    if call.work.keys() != more.work.keys() or len(call.uses) != len(more.uses):
        return False
    pairs = [(a.positions, b.positions) for a, b in zip(call.uses, more.uses, strict=True)]
    pairs += [(work, more.work[key]) for key, work in call.work.items()]
    pairs = [(a, b) for a, b in pairs if a]
    grown = {b == 2 * a for a, b in pairs}
    images = None if call.images is None or more.images is None else more.images == 2 * call.images
    if images is not None and grown not in (set(), {images}):
        return False
    return all(b == a or (b == 2 * a and a % size == 0) for a, b in pairs)


def _growth(pairs: Iterable[tuple[Call, Call]]) -> int:
    """How much the additional images added, in work and positions."""
    return sum(_amount(more) - _amount(call) for call, more in pairs)


def _amount(call: Call) -> int:
    return sum(call.work.values()) + sum(use.positions for use in call.uses)


def _one_image(call: Call, doubled: Call | None, batch: int) -> Call:
    """A call's share of one image: of what grows with the batch; of everything where that is not known."""
    after = call if doubled is None else doubled
    uses = []
    for use, more in zip(call.uses, after.uses, strict=True):
        fixed = doubled is not None and more.positions == use.positions
        if not fixed and use.positions % batch:
            raise InputError(
                f"batch must divide the {use.positions} positions of {call.path or 'the network'}, got {batch}"
            )
        uses.append(use if fixed else replace(use, positions=use.positions // batch))
    work = Counter({
        key: macs if doubled is not None and after.work[key] == macs else -(-macs // batch)
        for key, macs in call.work.items()
    })  # fmt: skip
    return Call(call.path, uses, work, call.slices, call.images, call.failure, call.unknown)
