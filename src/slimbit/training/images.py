"""Training images as batches: order, crops and flips of an epoch follow from its seed alone."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimbit.numerics.augment import draw_moves, largest_shift, moved
from slimbit.records.codec import sha256
from slimbit.records.errors import InputError
from slimbit.records.training import AugmentConfig

FINGERPRINT_IMAGES = 64
"""Images that a fingerprint looks at; all of them may take minutes to decode."""


class Pixels(Protocol):
    """Images in memory or decoded on demand, ``(images, channels, height, width)``, ``uint8`` or ``float32``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, channels, height, width."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: NDArray[np.intp], /) -> NDArray[Any]:
        """The images at some indices."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainImages:
    """What a network learns from.

    Attributes:
        pixels: Images, as stored.
        labels: Class of each image, shape ``(images,)``; None: the targets come from elsewhere (a teacher).
        mean: Per channel; inputs are ``(value / full_scale - mean) / std``.
        std: Per channel.
        full_scale: What ``uint8`` values are divided by; ``float32`` values are not.
        chosen: Indices of the images to use; None = all.
    """

    pixels: Pixels = field(repr=False)
    labels: NDArray[np.int64] | None = field(default=None, repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    full_scale: float = 255.0
    chosen: NDArray[np.intp] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.pixels) if self.chosen is None else len(self.chosen)

    def fingerprint(self) -> str:
        """Digest of shape, normalization, labels, choice and some of the images: other images have another.

        >>> import numpy as np
        >>> one, other = (TrainImages(pixels=np.full((2, 1, 1, 1), v), mean=(0.0,), std=(1.0,)) for v in (0.0, 1.0))
        >>> one.fingerprint() == other.fingerprint()
        False
        """
        some = np.linspace(0, len(self.pixels) - 1, min(FINGERPRINT_IMAGES, len(self.pixels))).astype(np.intp)
        told = [len(self.pixels), tuple(self.pixels.shape[1:]), self.full_scale, tuple(self.mean), tuple(self.std)]
        chosen = (b"all" if x is None else np.ascontiguousarray(x).tobytes() for x in (self.labels, self.chosen))
        return sha256(repr(told).encode(), np.ascontiguousarray(self.pixels[some]).tobytes(), chosen)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which images of every batch a process works on.

    A batch is cut into ``accumulate * processes`` parts, part p being every so-manieth image from the p-th on; this
    process takes the parts ``rank``, ``rank + processes``, ... one after the other. So it makes no difference to the
    gradient whether a batch is cut for memory or for processes.
    """

    batch_size: int
    accumulate: int = 1
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % (self.accumulate * self.processes):
            raise InputError(
                f"batch_size must be a multiple of accumulate times processes = {self.accumulate * self.processes}, "
                f"got {self.batch_size}"
            )


class Batches:
    """Batches of augmented, normalized images, on the device.

    Every epoch has a generator of its own, and its random numbers are drawn for all images before the first batch,
    so that a batch does not depend on who asked for which part of it.

    Args:
        images: What to learn from.
        augment: Crops and flips.
        device: Where to. Images in memory are kept there whole.
        channels_last: Memory layout of the batches.
    """

    def __init__(
        self, images: TrainImages, augment: AugmentConfig, *, device: torch.device, channels_last: bool = True
    ) -> None:
        self._images, self._augment, self._device = images, augment, device
        self._largest = largest_shift(augment, images.pixels.shape)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        whole = isinstance(images.pixels, np.ndarray)
        self._pixels = torch.from_numpy(images.pixels).to(device) if whole else None
        self._labels = None if images.labels is None else torch.from_numpy(images.labels).to(device)
        self._chosen = None if images.chosen is None else torch.from_numpy(np.array(images.chosen)).to(device)
        self._mean, self._std = (torch.tensor(v, device=device)[:, None, None] for v in (images.mean, images.std))

    def epoch(self, seed: int, share: Share) -> Iterator[list[tuple[Tensor, Tensor | None]]]:
        """The batches of one epoch, each as its accumulated parts; images that fill no batch are left out.

        Args:
            seed: Another seed, another order and other crops.
            share: Part of every batch that is wanted.

        Yields:
            ``accumulate`` pairs of images ``(part, channels, height, width)`` and labels ``(part,)``.
        """
        count = len(self._images)
        drawn = draw_moves(count, self._augment, largest=self._largest, seed=seed)
        order, shift, flip = drawn.to(self._device)  # once: a copy waits
        parts = share.accumulate * share.processes
        for start in range(0, count - share.batch_size + 1, share.batch_size):
            firsts = range(start + share.rank, start + parts, share.processes)
            places = [slice(first, start + share.batch_size, parts) for first in firsts]
            yield [self._batch(order[p], shift[:, p], flip[p]) for p in places]

    def _batch(self, places: Tensor, shift: Tensor, flip: Tensor) -> tuple[Tensor, Tensor | None]:
        indices = places if self._chosen is None else self._chosen[places]
        if self._pixels is not None:
            stored = self._pixels[indices]
        else:
            stored = torch.from_numpy(self._images.pixels[indices.cpu().numpy()]).to(self._device)
        pixels = stored
        if self._largest or self._augment.flip:
            pixels = moved(stored, shift, flip, largest=self._largest)
        batch = pixels.to(torch.float32)
        if pixels.dtype == torch.uint8:
            batch = batch.div_(self._images.full_scale)
        batch = batch.sub_(self._mean).div_(self._std).contiguous(memory_format=self._format)
        if self._format is torch.contiguous_format:
            # with one channel any strides count as contiguous; those of channels-last would decide for all layers
            batch = batch.flatten(1).view(batch.shape)
        return batch, None if self._labels is None else self._labels[indices]
