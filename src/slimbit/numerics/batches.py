"""How a network is called on a batch: the same for calibration, sensitivity and statistics."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError

Forward = Callable[[nn.Module, Any], Any]


def call_network(model: nn.Module, batch: Any) -> Any:
    """Call a network on a batch: a tensor, ``(inputs, labels, ...)`` of which the first is used, or a mapping.

    >>> call_network(nn.Identity(), (torch.ones(1), torch.zeros(1))).item()
    1.0
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(inputs_of(batch))


def inputs_of(batch: Any) -> Any:
    """The inputs of a batch that may carry labels beside them."""
    return batch[0] if isinstance(batch, tuple | list) and batch else batch


def checked_batches(batches: Iterable[Any] | Tensor) -> tuple[Any, ...]:
    """Batches as a tuple, a lone tensor as one batch; each must hold finite images.

    Raises:
        InputError: No batch, an empty one, or NaN.
    """
    found = (batches,) if isinstance(batches, Tensor) else tuple(batches)
    if not found:
        raise InputError("calibration must hold at least one batch, got none")
    for number, batch in enumerate(found):
        inputs = inputs_of(batch)
        if not isinstance(inputs, Tensor):
            continue
        if inputs.ndim == 0 or len(inputs) == 0:
            raise InputError(f"calibration batch {number} must hold images, got shape {tuple(inputs.shape)}")
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            raise InputError(f"calibration batch {number} must be finite, got NaN or infinity")
    return found


def joined(batches: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tensor batches of one shape and device as a single batch; anything else unchanged.

    >>> [x.shape[0] for x in joined((torch.zeros(2, 3), (torch.zeros(1, 3), torch.zeros(1))))]
    [3]
    """
    inputs = [inputs_of(batch) for batch in batches]
    if not all(isinstance(x, Tensor) for x in inputs):
        return batches
    if len({(x.shape[1:], x.dtype, x.device) for x in inputs}) != 1:
        return batches
    return (torch.cat(inputs) if len(inputs) > 1 else inputs[0],)


def pieces(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """Tensor batches cut into pieces of ``size`` images; what is no tensor is passed on whole."""
    for batch in batches:
        inputs = inputs_of(batch)
        if isinstance(inputs, Tensor):
            yield from torch.split(inputs, size)
        else:
            yield batch
