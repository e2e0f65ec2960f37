"""Batches of a data set as tensors."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimbit.numerics.augment import draw_moves, largest_shift, moved
from slimbit.records.training import AugmentConfig

if TYPE_CHECKING:
    from slimbit.zoo.data.dataset import DataSet, Images

CPU = torch.device("cpu")


class CalibrationBatches:
    """Unlabelled normalized batches, made anew on every pass and always the same.

    Attributes:
        images: Number of images in all batches together.
        indices: Which of the training images they are.

    >>> from slimbit.zoo.data import open_data
    >>> batches = open_data("digits").calibration(300, batch_size=200)
    >>> len(batches), [tuple(batch.shape) for batch in batches]
    (2, [(200, 1, 8, 8), (100, 1, 8, 8)])
    """

    def __init__(
        self,
        data: "DataSet",
        indices: NDArray[np.intp],
        batch_size: int,
        *,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> None:
        self._data, self._batch_size = data, batch_size
        self.images = len(indices)
        self._largest = 0 if augment is None else largest_shift(augment, data.input_shape)
        self._moves = None if augment is None else draw_moves(len(indices), augment, largest=self._largest, seed=seed)
        self.indices = indices if self._moves is None else indices[self._moves.order.numpy()]

    def __len__(self) -> int:
        return math.ceil(self.images / self._batch_size)

    def __getitem__(self, number: int) -> Tensor:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        start = number % len(self) * self._batch_size
        chosen, images = slice(start, start + self._batch_size), self._data.train.images
        if self._moves is None:
            return normalized(self._data, images, self.indices[chosen])
        shift, flip = self._moves.shift[:, chosen], self._moves.flip[chosen]
        pixels = moved(torch.from_numpy(images[self.indices[chosen]]), shift, flip, largest=self._largest)
        return normalized_pixels(self._data, pixels)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))


def normalized(
    data: "DataSet",
    images: "Images",
    indices: NDArray[np.intp],
    *,
    device: torch.device = CPU,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """One batch, ``(value / full_scale - mean) / std`` in float32, shape ``(len(indices), channels, height, width)``.

    The pixels travel as they are stored, one byte each where they are ``uint8``.
    """
    pixels = torch.from_numpy(images[indices]).to(device)
    return normalized_pixels(data, pixels, memory_format=memory_format)


def normalized_pixels(
    data: "DataSet", pixels: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """The same of pixels ``(images, channels, height, width)`` as they are stored; float32 ones are overwritten."""
    stored = pixels.contiguous(memory_format=memory_format)
    batch = stored.to(torch.float32)  # a new tensor for uint8; for float32 the gathered copy itself
    if stored.dtype == torch.uint8:
        batch.div_(data.full_scale)
    mean, std = (
        torch.tensor(values, device=batch.device)[:, None, None]
        for values in (data.normalization.mean, data.normalization.std)
    )
    return batch.sub_(mean).div_(std)
