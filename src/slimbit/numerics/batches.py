"""How a network is called on a batch: the same for calibration, sensitivity and statistics."""

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError

Forward = Callable[[nn.Module, Any], Any]

MOST_IMAGES = 100_000
"""Calibration images that are taken from an iterator, whose end nobody knows; some hundred are enough."""
MOST_BYTES = 1 << 34
"""Bytes of them, which are held at once: 28,000 images of 3x224x224."""


def call_network(model: nn.Module, batch: Any) -> Any:
    """Call a network on a batch: a tensor, ``(inputs, labels, ...)`` of which the first is used, or a mapping.

    >>> call_network(nn.Identity(), (torch.ones(1), torch.zeros(1))).item()
    1.0
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(inputs_of(batch))


def zeros_like_input(shape: tuple[int, ...]) -> Tensor:
    """One example of zeros with its batch dimension, without memory of its own.

    >>> zeros_like_input((3, 8, 8)).shape
    torch.Size([1, 3, 8, 8])
    """
    return torch.zeros(1).expand(1, *shape)


def inputs_of(batch: Any) -> Any:
    """The inputs of a batch that may carry labels beside them."""
    return batch[0] if isinstance(batch, tuple | list) and batch else batch


def count_of(batch: Any) -> int:
    """Number of images of a batch: by its first tensor; 1 where there is none.

    >>> count_of({"ids": torch.zeros(3, 7)}), count_of((torch.zeros(2, 1), torch.zeros(2)))
    (3, 2)
    """
    first = next((x for x in _tensors(batch) if x.ndim), None)
    return 1 if first is None else len(first)


def as_called(batches: Iterable[Any] | Tensor, model: nn.Module, example_input: Any) -> Iterable[Any] | Tensor:
    """Batches in the form of the network's example, so that what lies beside its inputs (labels) is left out.

    Args:
        batches: A tensor, a mapping, or an iterable of tensors, mappings and tuples.
        model: Its forward method names the arguments of an example with several.
        example_input: A tensor: batches stay as they are. A mapping: of each mapping only its keys are used. A tuple
            of several inputs: the first so many of each batch, or of its first entry, by argument name.
    """
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        return batches
    if isinstance(example_input, Mapping):
        keys = list(example_input)
        return [{k: b[k] for k in keys} if isinstance(b, Mapping) and {*keys} <= {*b} else b for b in _ending(batches)]
    if not isinstance(example_input, tuple | list) or len(example_input) < 2:
        return batches
    names = list(inspect.signature(model.forward).parameters)[: len(example_input)]
    return [_by_name(batch, names) for batch in _ending(batches)]


def _by_name(batch: Any, names: list[str]) -> Any:
    if not isinstance(batch, tuple | list) or not batch:
        return batch
    inputs = batch[0] if isinstance(batch[0], tuple | list) else batch
    return dict(zip(names, inputs, strict=False))


def _ending(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, unless they come without end: a sequence has one, an iterator may have none."""
    if isinstance(batches, Sequence):
        yield from batches
        return
    images = size = 0
    for batch in batches:
        images += max(1, count_of(batch))
        size += sum(tensor.nbytes for tensor in _tensors(batch))
        if images > MOST_IMAGES or size > MOST_BYTES:
            most = f"{MOST_IMAGES:,} images" if images > MOST_IMAGES else f"{MOST_BYTES:,} bytes"
            raise InputError(f"calibration must end after at most {most}, got more: some hundred images are enough")
        yield batch


def _tensors(batch: Any) -> list[Tensor]:
    """What a network reads of a batch, as far as it is tensors."""
    values = list(batch.values()) if isinstance(batch, Mapping) else [inputs_of(batch)]
    return [value for value in values if isinstance(value, Tensor)]


def checked_batches(batches: Iterable[Any] | Tensor) -> tuple[Any, ...]:
    """Batches as a tuple, a lone tensor or mapping as one batch; each must hold finite images.

    Raises:
        InputError: No batch, an empty one, NaN, or more than can be meant, as from an iterator that never ends.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, str):
        raise InputError(f"calibration must be a tensor of images or batches of them, got {type(batches).__name__}")
    found = (batches,) if isinstance(batches, Tensor | Mapping) else tuple(_ending(batches))
    if not found:
        raise InputError("calibration must hold at least one batch, got none")
    for number, batch in enumerate(found):
        read = inputs_of(batch)
        if read is None or isinstance(read, str | bytes | int | float):
            raise InputError(f"calibration batch {number} must hold images, got {type(read).__name__}")
        inputs = next(iter(_tensors(batch)), None)
        if inputs is None:
            continue
        if inputs.ndim == 0 or len(inputs) == 0:
            raise InputError(f"calibration batch {number} must hold images, got shape {tuple(inputs.shape)}")
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            raise InputError(f"calibration batch {number} must be finite, got NaN or infinity")
    return found


class Regrouped(Sequence[Any]):
    """The same images in batches of another size, each made when it is asked for, so that nothing is stored twice.

    Only inputs are passed on, no labels. Batches that differ in shape, type or device are cut, but not joined; what
    cannot be cut stays whole.

    Args:
        batches: Tensors, tuples that begin with one, mappings, or anything else.
        size: Images of each batch, of the last one what is left.
        images: Only the first so many are passed on; None = all.

    Attributes:
        images: Number of images.

    >>> [len(x) for x in Regrouped((torch.zeros(2, 3), (torch.zeros(3, 3), torch.zeros(3))), 4)]
    [4, 1]
    """

    def __init__(self, batches: Sequence[Any], size: int, images: int | None = None) -> None:
        whole = sum(map(count_of, batches))
        self.images = whole if images is None else min(images, whole)
        self._size, self._batches = size, batches if _are_alike(batches) else None
        self._starts = list(itertools.accumulate(map(count_of, batches), initial=0))
        if self._batches is None:
            self._parts = list(_first(pieces(batches, size), self.images))
            self.images = sum(map(count_of, self._parts))

    def __len__(self) -> int:
        return len(self._parts) if self._batches is None else math.ceil(self.images / self._size)

    def __getitem__(self, number: int) -> Any:  # type: ignore[override] # no slices
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        if self._batches is None:
            return self._parts[number]
        start, end = number * self._size, min((number + 1) * self._size, self.images)
        found = [
            _cut(batch, slice(max(0, start - first), end - first))
            for batch, first, last in zip(self._batches, self._starts, self._starts[1:], strict=False)
            if first < end and last > start
        ]
        return _together(found)


def _first(parts: Iterable[Any], images: int) -> Iterator[Any]:
    """As many parts as hold so many images; the last may be cut."""
    for part in parts:
        if images <= 0:
            return
        count = count_of(part)
        yield part if count <= images else next(pieces((part,), images))
        images -= count


def _are_alike(batches: Sequence[Any]) -> bool:
    """Whether the inputs of batches can be joined."""
    if all(isinstance(batch, Mapping) for batch in batches):
        names = list(batches[0])
        if not all(list(batch) == names and _is_divisible(batch) for batch in batches):
            return False
        columns = [[batch[name] for batch in batches] for name in names]
    else:
        columns = [[inputs_of(batch) for batch in batches]]
    return all(
        all(isinstance(x, Tensor) for x in column) and len({(x.shape[1:], x.dtype, x.device) for x in column}) == 1
        for column in columns
    )


def _cut(batch: Any, images: slice) -> Any:
    if isinstance(batch, Mapping):
        return {name: value[images] for name, value in batch.items()}
    return inputs_of(batch)[images]


def _together(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Mapping):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)


def _is_divisible(batch: Mapping[str, Any]) -> bool:
    """Whether every entry holds one row per image."""
    return all(isinstance(x, Tensor) and x.ndim and len(x) == count_of(batch) for x in batch.values())


def pieces(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """Batches cut into pieces of ``size`` images; what cannot be cut is passed on whole.

    >>> [len(x["ids"]) for x in pieces([{"ids": torch.zeros(3, 7)}], 2)]
    [2, 1]
    """
    for batch in batches:
        inputs = inputs_of(batch)
        if isinstance(batch, Mapping) and _is_divisible(batch):
            parts = [torch.split(value, size) for value in batch.values()]
            yield from (dict(zip(batch, part, strict=True)) for part in zip(*parts, strict=True))
        elif isinstance(inputs, Tensor):
            yield from torch.split(inputs, size)
        else:
            yield batch


def output_tensors(outputs: Any) -> list[Tensor]:
    """Every tensor of a network's output, in any nesting of containers, dataclasses and other objects.

    >>> [x.shape[0] for x in output_tensors({"logits": torch.zeros(2), "boxes": (torch.zeros(3), None)})]
    [2, 3]
    """
    return list(_every_tensor(outputs, ()))


def _every_tensor(value: Any, inside: tuple[int, ...]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    if isinstance(value, Tensor | nn.Module) or id(value) in inside:
        return
    parts = value.values() if isinstance(value, Mapping) else value
    if not isinstance(value, Mapping | list | tuple):
        parts = vars(value).values() if hasattr(value, "__dict__") else ()
    for part in parts:
        yield from _every_tensor(part, (*inside, id(value)))


def output_heads(outputs: Any) -> list[Tensor]:
    """The float tensors of a network's output: of a tensor itself, its ``logits``, or every head of a container.

    >>> [head.shape[1] for head in output_heads({"age": torch.zeros(2, 1), "kinds": (torch.zeros(2, 5), None)})]
    [1, 5]
    """
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() and outputs.ndim else []
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return output_heads(logits)
    if isinstance(outputs, Mapping):
        parts = list(outputs.values())
    elif isinstance(outputs, list | tuple):
        parts = list(outputs)
    else:
        parts = list(vars(outputs).values()) if hasattr(outputs, "__dict__") else []
    return [head for part in parts for head in output_heads(part)]
